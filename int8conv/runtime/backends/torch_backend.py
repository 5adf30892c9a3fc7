"""The decoder's operations between its linears in PyTorch, on any PyTorch device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from ..decoder.attention_spec import AttentionSpec, Tables
from ..decoder.cache import Cache, HostCache, KVCache, Stored
from ..decoder.latent_cache import LatentCache
from ..decoder.norms import NormWeights, normalised
from ..decoder.quantized_cache import QuantizedCache
from ..decoder.rotary import Rotary, rotate
from ..generate.sampler import Request, Sampler, TorchSampler
from ..models.config import Activation, DecoderConfig
from .interface import Forward, FusedExperts, FusedLayer, Positions, Step
from .parts import BlockParts, FeedForwardParts, Hidden, Projection
from .torch_attention import attend

if TYPE_CHECKING:
    from ...kernels.cpu.fused import Tables as Arrays

ACTIVATIONS: Final[dict[Activation, Callable[[Tensor], Tensor]]] = {
    "silu": F.silu,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


@dataclass(frozen=True)
class TorchPositions:
    """``Positions`` with tables and masks."""

    ids: Tensor
    tables: Sequence[tuple[Tensor, Tensor]]
    """cos and sin of each rotary embedding."""
    biases: dict[int | None, Tensor | None]
    """Biases of scores by window; filled by ``attend`` on demand."""
    arrays: dict[int | None, Arrays] = field(default_factory=dict)
    """Tables as compiled layers take them, by number of the rotary embedding; filled by numba's backend."""

    def to(self, device: torch.device) -> TorchPositions:
        if device == self.ids.device:
            return self
        tables = [(cos.to(device), sin.to(device)) for cos, sin in self.tables]
        return TorchPositions(self.ids.to(device), tables, {})

    def last(self) -> TorchPositions:
        tables = [(cos[..., -1:, :], sin[..., -1:, :]) for cos, sin in self.tables]
        return TorchPositions(self.ids[..., -1:], tables, {})


class TorchBackend:
    """PyTorch's operators; nothing is fused."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def cache(self, config: DecoderConfig, *, batch: int, capacity: int, dtype: torch.dtype) -> HostCache:  # fmt: skip
        if config.latent is not None:
            return LatentCache(
                config, batch=batch, capacity=capacity, dtype=dtype, device=self.device
            )
        if dtype == torch.int8:
            return QuantizedCache(config, batch=batch, capacity=capacity)
        return KVCache(config, batch=batch, capacity=capacity, dtype=dtype, device=self.device)

    def steps(self, decoder: Forward, cache: Cache) -> Step:
        return lambda tokens: decoder.forward(tokens, cache, last_only=True)

    def fuse_layer(self, block: BlockParts) -> FusedLayer | None:
        return None

    def fuse_experts(self, experts: Sequence[FeedForwardParts]) -> FusedExperts | None:
        return None

    def sampler(self, requests: Sequence[Request], vocab: int) -> Sampler:
        return TorchSampler(requests, vocab)

    def positions(
        self, rotaries: Sequence[Rotary], cache: Cache | None, token_ids: Tensor, dtype: torch.dtype
    ) -> TorchPositions:
        """Computed on the host, as some rotary scalings depend on the length."""
        ids = torch.arange(token_ids.shape[1])
        if cache is None or cache.length == cache.lengths.min():
            ids += cache.length if cache is not None else 0
            tables = [rotary.tables(ids, dtype) for rotary in rotaries]
        else:
            ids = ids + cache.lengths[:, None]
            tables = [_tables_of_each(rotary, ids, dtype) for rotary in rotaries]
        return TorchPositions(ids, tables, {}).to(token_ids.device)

    def norm(self, x: Tensor, norm: NormWeights) -> Tensor:
        return normalised(x, norm)

    def inner(self, wide: Projection, x: Hidden, activation: Activation, gated: bool) -> Tensor:
        outputs = wide(x)
        first, *rest = outputs[0].chunk(2, dim=-1) if gated and len(outputs) == 1 else outputs
        y = ACTIVATIONS[activation](first)
        return y * rest[0] if rest else y

    def attend(
        self, qkv: Sequence[Tensor], spec: AttentionSpec, positions: Positions, cache: Cache | None
    ) -> Tensor:
        assert isinstance(positions, TorchPositions)
        q, *own = (y.reshape(*y.shape[:2], -1, spec.size) for y in qkv)  # b t h d
        tables = spec.own(positions.tables)
        q = q if spec.norm_rotated else _normed(q, spec.query_norm, spec.by_head)
        q = _rotated(spec.grown(q, positions.ids), spec.query_norm, spec, tables)
        keys, values = self._stored(own, spec, tables, cache, positions)
        y = attend(q, keys, values, spec, positions.ids, positions.biases)
        return y.transpose(1, 2).flatten(2)

    def rotated(self, x: Tensor, spec: AttentionSpec, positions: Positions) -> Tensor:
        assert isinstance(positions, TorchPositions)
        tables = spec.own(positions.tables)
        return x if tables is None else rotate(x, tables, spec.interleaved)

    def attend_to(
        self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, positions: Positions
    ) -> Tensor:
        assert isinstance(positions, TorchPositions)
        return attend(q, k, v, spec, positions.ids, positions.biases)

    def _stored(
        self, own: Sequence[Tensor], spec: AttentionSpec, tables: Tables | None, cache: Cache | None, positions: TorchPositions
    ) -> tuple[Stored, Stored]:  # fmt: skip
        """Keys and values of all positions: ``own``, those of the tokens ``[b, t, h, d]``, behind those in the cache."""
        if spec.reads_only:
            assert isinstance(cache, KVCache | QuantizedCache)
            return cache.read(spec.layer, int(positions.ids.max()) + 1)
        k, v = own
        k = k if spec.norm_rotated else _normed(k, spec.key_norm, spec.by_head)
        k = _rotated(k, spec.key_norm, spec, tables)
        v = _normed(v, spec.value_norm, True).transpose(1, 2)
        if cache is None:
            return k, v
        assert isinstance(cache, HostCache)
        return cache.update(spec.layer, k, v)


def _tables_of_each(rotary: Rotary, ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin ``[b, 1, t, size]`` for ``[b, t]``, per sequence, as some rotary scalings depend on its length."""
    cos, sin = zip(*(rotary.tables(row, dtype) for row in ids), strict=True)
    return torch.stack(cos)[:, None], torch.stack(sin)[:, None]


def _rotated(
    x: Tensor, norm: NormWeights | None, spec: AttentionSpec, tables: Tables | None
) -> Tensor:
    """``[b, t, h, d]`` -> ``[b, h, t, d]``; normalised afterwards if the norm comes last."""
    x = x.transpose(1, 2)
    if tables is not None:
        x = rotate(x, tables, spec.interleaved)
    return _normed(x, norm, True) if spec.norm_rotated else x


def _normed(x: Tensor, norm: NormWeights | None, by_head: bool) -> Tensor:
    """``[b, t, h, d]``, normalised."""
    if norm is None:
        return x
    return normalised(x, norm) if by_head else normalised(x.flatten(2), norm).view(x.shape)
