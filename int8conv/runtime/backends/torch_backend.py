"""What the decoder computes between its linears, in PyTorch; ``gpu.kernels`` has the same with Triton."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..decoder.attention import AttentionSpec, attend
from ..decoder.cache import Cache, KVCache
from ..decoder.norms import NormWeights, normalised
from ..decoder.quantized_cache import QuantizedCache
from ..decoder.rotary import rotate
from ..generate.sampler import Request, Sampler, TorchSampler
from ..models.config import Activation, DecoderConfig

ACTIVATIONS: Final[dict[Activation, Callable[[Tensor], Tensor]]] = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class Places(Protocol):
    """Where the tokens of a call stand."""

    positions: Tensor
    """Integers ``[t]`` or ``[b, t]``."""

    def to(self, device: torch.device) -> Places:
        """On another device."""


class Kernels(Protocol):
    """Between two linears. An activation may be an object that only the linears of the same device understand."""

    device: torch.device

    def cache(self, config: DecoderConfig, *, batch: int, capacity: int, dtype: torch.dtype) -> Any:
        """An empty cache of keys and values in a float dtype, or in int8 with scales."""

    def steps(self, decoder: Any, cache: Any) -> Callable[[Tensor], Tensor]:
        """Token ids ``[b, 1]`` -> logits ``[b, 1, vocab]``, as often as wanted."""

    def layer(self, block: Any) -> Callable[[Tensor, Any, Any], Tensor | None] | None:
        """A decoder's block as one call on ``x [b, t, hidden]``, places and cache, which says None to what it does not take."""

    def sampler(self, requests: Sequence[Request], vocab: int) -> Sampler:
        """What chooses the tokens of sequences from such logits."""

    def places(self, rotaries: Any, cache: Any, token_ids: Tensor, dtype: torch.dtype) -> Any:
        """``Places`` of token ids ``[b, t]`` behind those in the cache, with what rotation needs."""

    def norm(self, x: Tensor, norm: NormWeights) -> Any: ...

    def value(self, x: Any) -> Tensor:
        """An activation as a tensor."""

    def inner(self, wide: Any, x: Any, activation: Activation, gated: bool) -> Any:
        """``act(up)``, or ``act(gate) * up``, of the FFN; gate and up may be one linear."""

    def few_tokens(
        self, experts: Sequence[Any]
    ) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
        """FFNs -> what passes tokens ``[tokens, hidden]`` through those of them whose numbers, with their shares, are
        ``[tokens, used]``, and never asks the device for the numbers; None: there is nothing of the kind."""

    def attend(self, qkv: Sequence[Tensor], spec: AttentionSpec, places: Any, cache: Any) -> Tensor:
        """``[b, t, heads * d]`` for q, k and v of ``[b, t, ...]``; k and v go into the cache."""


@dataclass(frozen=True)
class _Places:
    positions: Tensor
    tables: Sequence[tuple[Tensor, Tensor]]
    """Of each rotary embedding."""
    biases: dict[int | None, Tensor | None]
    """Of scores, by window; filled by ``attend`` as layers ask for them."""

    def to(self, device: torch.device) -> _Places:
        if device == self.positions.device:
            return self
        tables = [(cos.to(device), sin.to(device)) for cos, sin in self.tables]
        return _Places(self.positions.to(device), tables, {})


class TorchKernels:
    """Operators of PyTorch, on any device that it has."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def cache(self, config: DecoderConfig, *, batch: int, capacity: int, dtype: torch.dtype) -> Cache:  # fmt: skip
        if dtype == torch.int8:
            return QuantizedCache(config, batch=batch, capacity=capacity)
        return KVCache(config, batch=batch, capacity=capacity, dtype=dtype)

    def steps(self, decoder: Any, cache: Cache) -> Callable[[Tensor], Tensor]:
        return lambda tokens: decoder.forward(tokens, cache, last_only=True)

    def layer(self, block: Any) -> Callable[[Tensor, Any, Any], Tensor | None] | None:
        return None

    def sampler(self, requests: Sequence[Request], vocab: int) -> Sampler:
        return TorchSampler(requests, vocab)

    def places(self, rotaries: Any, cache: Cache | None, token_ids: Tensor, dtype: torch.dtype) -> _Places:  # fmt: skip
        return self._places(rotaries, cache, token_ids.shape[1], dtype).to(token_ids.device)

    def _places(self, rotaries: Any, cache: Cache | None, tokens: int, dtype: torch.dtype) -> _Places:  # fmt: skip
        positions = torch.arange(tokens)
        if cache is None or cache.length == cache.lengths.min():
            positions += cache.length if cache is not None else 0
            return _Places(positions, [rotary.tables(positions, dtype) for rotary in rotaries], {})
        positions = positions + cache.lengths[:, None]
        return _Places(positions, [_tables_of_each(rotary, positions, dtype) for rotary in rotaries], {})  # fmt: skip

    def norm(self, x: Tensor, norm: NormWeights) -> Tensor:
        return normalised(x, norm)

    def value(self, x: Tensor) -> Tensor:
        return x

    def inner(self, wide: Any, x: Tensor, activation: Activation, gated: bool) -> Tensor:
        outputs = wide(x)
        first, *rest = outputs[0].chunk(2, dim=-1) if gated and len(outputs) == 1 else outputs
        y = ACTIVATIONS[activation](first)
        return y * rest[0] if rest else y

    def few_tokens(self, experts: Sequence[Any]) -> None:
        return None

    def attend(self, qkv: Sequence[Tensor], spec: AttentionSpec, places: _Places, cache: Cache | None) -> Tensor:  # fmt: skip
        q, k, v = (y.reshape(*y.shape[:2], -1, spec.size) for y in qkv)  # b t h d
        q, k = _normed(q, spec.query_norm, spec.by_head), _normed(k, spec.key_norm, spec.by_head)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        if places.tables:
            tables = places.tables[spec.rotary]
            q, k = rotate(q, tables, spec.interleaved), rotate(k, tables, spec.interleaved)
        if cache is not None:
            k, v = cache.update(spec.layer, k, v)
        y = attend(q, k, v, spec, places.positions, places.biases)
        return y.transpose(1, 2).flatten(2)


def _tables_of_each(rotary: Any, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin ``[b, 1, t, size]`` for ``[b, t]``: one by one, as some scalings go by the sequence's length."""
    cos, sin = zip(*(rotary.tables(row, dtype) for row in positions), strict=True)
    return torch.stack(cos)[:, None], torch.stack(sin)[:, None]


def _normed(x: Tensor, norm: NormWeights | None, by_head: bool) -> Tensor:
    """``[b, t, h, d]``, normalised."""
    if norm is None:
        return x
    return normalised(x, norm) if by_head else normalised(x.flatten(2), norm).view(x.shape)
