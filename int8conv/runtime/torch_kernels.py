"""What the decoder computes between its linears, in PyTorch; ``gpu_kernels`` has the same with Triton."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .cache import KVCache
from .config import Activation, DecoderConfig

ACTIVATIONS: Final[dict[Activation, Callable[[Tensor], Tensor]]] = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


@dataclass(frozen=True)
class NormWeights:
    """A norm's parameters, in the dtype of the activations."""

    rms: bool
    eps: float
    weight: Tensor
    bias: Tensor | None


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
        """An empty cache of keys and values."""

    def steps(self, decoder: Any, cache: Any) -> Callable[[Tensor], Tensor]:
        """Token ids ``[b, 1]`` -> logits ``[b, 1, vocab]``, as often as wanted."""

    def places(self, rotary: Any, cache: Any, token_ids: Tensor, dtype: torch.dtype) -> Any:
        """``Places`` of token ids ``[b, t]`` behind those in the cache, with what rotation needs."""

    def norm(self, x: Tensor, norm: NormWeights) -> Any: ...

    def value(self, x: Any) -> Tensor:
        """An activation as a tensor."""

    def inner(self, wide: Any, x: Any, activation: Activation) -> Any:
        """``act(up)``, or ``act(gate) * up``, of the FFN."""

    def attend(self, qkv: Sequence[Tensor], config: DecoderConfig, layer: int, places: Any, cache: Any) -> Tensor:  # fmt: skip
        """``[b, t, heads * d]`` for q, k and v of ``[b, t, ...]``; k and v go into the cache."""


@dataclass(frozen=True)
class _Places:
    positions: Tensor
    tables: tuple[Tensor, Tensor] | None

    def to(self, device: torch.device) -> _Places:
        tables = self.tables and (self.tables[0].to(device), self.tables[1].to(device))
        return _Places(self.positions.to(device), tables)


class TorchKernels:
    """Operators of PyTorch."""

    device = torch.device("cpu")

    def cache(self, config: DecoderConfig, *, batch: int, capacity: int, dtype: torch.dtype) -> KVCache:  # fmt: skip
        return KVCache(config, batch=batch, capacity=capacity, dtype=dtype)

    def steps(self, decoder: Any, cache: KVCache) -> Callable[[Tensor], Tensor]:
        return lambda tokens: decoder.forward(tokens, cache, last_only=True)

    def places(self, rotary: Any, cache: KVCache | None, token_ids: Tensor, dtype: torch.dtype) -> _Places:  # fmt: skip
        positions = torch.arange(token_ids.shape[1])
        if cache is None or cache.length == cache.lengths.min():
            positions += cache.length if cache is not None else 0
            return _Places(positions, rotary.tables(positions, dtype) if rotary else None)
        positions = positions + cache.lengths[:, None]
        tables = rotary.tables(positions.flatten(), dtype) if rotary else ()
        cos_sin = [table.view(*positions.shape, -1)[:, None] for table in tables]  # b 1 t d
        return _Places(positions, (cos_sin[0], cos_sin[1]) if cos_sin else None)

    def norm(self, x: Tensor, norm: NormWeights) -> Tensor:
        if not norm.rms:
            return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.eps)
        return wide.to(x.dtype) * norm.weight

    def value(self, x: Tensor) -> Tensor:
        return x

    def inner(self, wide: Any, x: Tensor, activation: Activation) -> Tensor:
        first, *rest = wide(x)
        y = ACTIVATIONS[activation](first)
        return y * rest[0] if rest else y

    def attend(self, qkv: Sequence[Tensor], config: DecoderConfig, layer: int, places: _Places, cache: KVCache | None) -> Tensor:  # fmt: skip
        tokens, size = qkv[0].shape[1], config.head_dim
        q, k, v = (y.view(*y.shape[:2], -1, size).transpose(1, 2) for y in qkv)  # b h t d
        if places.tables is not None:
            q, k = rotate(q, places.tables), rotate(k, places.tables)
        past = 0
        if cache is not None:
            past = cache.length
            k, v = cache.update(layer, k, v)
        mask = causal_mask(tokens, past) if past and tokens > 1 else None
        if places.positions.ndim == 2:
            mask = (places.positions[:, :, None] >= torch.arange(k.shape[2]))[:, None]  # b 1 t s
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=past == 0 and tokens > 1,
            enable_gqa=config.num_heads != config.num_kv_heads,
        )  # fmt: skip
        return y.transpose(1, 2).flatten(2)


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate ``[b, h, t, d]`` by tables of cos and sin ``[t, d]`` or ``[b, 1, t, d]``."""
    cos, sin = tables
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def causal_mask(tokens: int, past: int, device: torch.device | None = None) -> Tensor:
    """True where a token ``[t]`` may look at a position ``[s]``."""
    return torch.ones(tokens, past + tokens, dtype=torch.bool, device=device).tril(past)
