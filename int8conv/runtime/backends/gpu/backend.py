"""The ``Backend`` of a GPU, in Triton and, for the attention of prompts, PyTorch; imports triton.

Activations are 16-bit. Norms and activation functions are deferred to the kernel that reads the result: an activation may be a
``Deferred``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ....kernels.gpu.linear import Operand
from ....kernels.gpu.prologue import Prologue
from ....kernels.gpu.rotary import rotate_and_store
from ....kernels.weight import FallbackCounter
from ...decoder.attention_spec import AttentionSpec
from ...decoder.cache import Cache
from ...decoder.norms import NormWeights
from ...decoder.rotary import Rotary
from ...generate.sampler import Request
from ...models.config import Activation, DecoderConfig
from ..interface import Forward, FusedLayer, Positions
from ..parts import BlockParts, FeedForwardParts, Hidden, Projection
from .attention import DeviceAttention, normed, rotated, tensors_of, turned
from .cache import DeviceCache, DeviceLatentCache, StaticCache, rounded
from .decode import DecodeSteps
from .deferred import Deferred, operand_of
from .experts import FewTokens
from .projections import DeviceProjection, inner_of
from .sampler import DeviceSampler


@dataclass(frozen=True)
class DevicePositions:
    """``Positions`` on the device."""

    ids: Tensor
    """int32 ``[b, t]``."""
    filled: Tensor
    """int32 ``[b]``: number of positions filled, including these tokens."""
    past: int
    """Number of positions filled before; the same for all sequences if there are several tokens."""
    tables: Sequence[tuple[Tensor, Tensor]]
    """cos and sin of each rotary embedding, float32 ``[positions, size / 2]``."""

    def to(self, device: torch.device) -> DevicePositions:
        """Nothing to move: they are created on the device."""
        return self

    def last(self) -> DevicePositions:
        return replace(self, ids=self.ids[:, -1:], past=self.past + self.ids.shape[1] - 1)


class GpuBackend:
    """Only experts are fused: a step is a CUDA graph."""

    def __init__(
        self, max_positions: int, device: torch.device, counters: Mapping[str, FallbackCounter] | None = None
    ) -> None:  # fmt: skip
        """``counters``: counts of the weights' outlier fallbacks, which the warm-up step before a capture must not change."""
        self.device = device
        self.counters = {} if counters is None else counters
        self._max_positions = max_positions
        self._tables: list[tuple[Tensor, Tensor]] | None = None
        self._attention = DeviceAttention(device)

    def cache(self, config: DecoderConfig, *, batch: int, capacity: int, dtype: torch.dtype) -> StaticCache:  # fmt: skip
        kind = DeviceCache if config.latent is None else DeviceLatentCache
        return kind(config, batch=batch, capacity=rounded(capacity), dtype=dtype, device=self.device)  # fmt: skip

    def steps(self, decoder: Forward, cache: Cache) -> DecodeSteps:
        assert isinstance(cache, StaticCache)
        return DecodeSteps(decoder, cache, self.counters)

    def fuse_layer(self, block: BlockParts) -> FusedLayer | None:
        return None

    def sampler(self, requests: Sequence[Request], vocab: int) -> DeviceSampler:
        return DeviceSampler(requests, vocab, self.device)

    def positions(
        self, rotaries: Sequence[Rotary], cache: Cache | None, token_ids: Tensor, dtype: torch.dtype
    ) -> DevicePositions:
        batch, tokens = token_ids.shape
        device = token_ids.device
        steps = torch.arange(tokens, dtype=torch.int32, device=device)
        before = torch.zeros(batch, dtype=torch.int32, device=device) if cache is None else cache.lengths  # fmt: skip
        past = 0 if cache is None else cache.length
        tables = self._rotary_tables(rotaries)
        if tokens > 1:
            tables = [
                self._table(rotary, rotary.frequencies(past + tokens), past + tokens) if rotary.grows else table
                for rotary, table in zip(rotaries, tables, strict=True)
            ]  # fmt: skip
        return DevicePositions(before[:, None] + steps, before + tokens, past, tables)

    def _rotary_tables(self, rotaries: Sequence[Rotary]) -> list[tuple[Tensor, Tensor]]:
        """Tables for all positions, created once. If frequencies depend on the sequence's length, each position has those of a
        sequence that ends there, which is what a step needs without reading the length."""
        if self._tables is None:
            count = self._max_positions
            self._tables = [self._table(each, each.step_frequencies(count), count) for each in rotaries]  # fmt: skip
        return self._tables

    def _table(self, rotary: Rotary, frequencies: Tensor, count: int) -> tuple[Tensor, Tensor]:
        angles = torch.arange(count).float()[:, None] * frequencies
        size = rotary.rope.magnitude
        return (angles.cos() * size).to(self.device), (angles.sin() * size).to(self.device)

    def norm(self, x: Tensor, norm: NormWeights) -> Deferred:
        kind = "rms" if norm.rms else "layer"
        prologue = Prologue(norm=kind, weight=norm.weight, bias=norm.bias, eps=norm.eps)
        return Deferred(Operand(x.reshape(-1, x.shape[-1]), prologue), tuple(x.shape))

    def inner(self, wide: Projection, x: Hidden, activation: Activation, gated: bool) -> Deferred:
        rows, shape = operand_of(x)
        if isinstance(wide, DeviceProjection):
            inner = wide.inner(rows, activation, gated)
        else:  # with multipliers
            inner = inner_of([y.flatten(0, -2) for y in wide(x)], activation, gated)
        return Deferred(inner, (*shape, inner.x.shape[1]))

    def fuse_experts(self, experts: Sequence[FeedForwardParts]) -> FewTokens | None:
        return FewTokens.of(experts)

    def attend(
        self, qkv: Sequence[Tensor], spec: AttentionSpec, positions: Positions, cache: Cache | None
    ) -> Tensor:
        assert isinstance(positions, DevicePositions)
        assert cache is None or isinstance(cache, DeviceCache)
        batch, tokens = qkv[0].shape[:2]
        q, k, v, tables = self._ready(qkv, spec, positions)
        if cache is not None:
            keys, values = cache.layer(spec.layer)
            if tokens == 1:
                y = self._attention.step((q, k, v), tables, keys, values, positions.filled, spec)
                return y.view(batch, 1, -1)
        else:
            shape = (2, batch, spec.kv_heads, tokens, spec.size)
            keys, values = torch.empty(shape, dtype=qkv[0].dtype, device=qkv[0].device)
        ids = positions.ids.flatten()
        if k is not None and v is not None:
            stored_keys, stored_values, scales = tensors_of(keys, values)
            q = rotate_and_store(
                q, k, v, tables, ids, stored_keys, stored_values, scales=scales, interleaved=spec.interleaved,
            )  # fmt: skip
        elif tables is not None:
            q = rotated(q, tables, ids, spec)
        past = 0 if cache is None else positions.past
        return self._attention.prompt(q.view(batch, tokens, spec.heads, -1), keys, values, past, spec)  # fmt: skip

    def _ready(
        self, qkv: Sequence[Tensor], spec: AttentionSpec, positions: DevicePositions
    ) -> tuple[Tensor, Tensor | None, Tensor | None, tuple[Tensor, Tensor] | None]:
        """Normalised queries, keys and values ``[b * t, h * d]``, and the tables to rotate them by; of a layer that reads another's
        keys and values, its queries alone."""
        ids, tables = positions.ids, spec.own(positions.tables)
        q, *own = (y.flatten(0, 1) for y in qkv)
        if spec.norm_rotated and tables is not None:
            q, own[0] = (rotated(y, tables, ids.flatten(), spec) for y in (q, own[0]))
            tables = None
        q = normed(q, spec.query_norm, spec.size, spec.by_head)
        if spec.growth:
            q = spec.grown(q.view(*ids.shape, -1, spec.size), ids).view(len(q), -1)
        if spec.reads_only:
            return q, None, None, tables
        k = normed(own[0], spec.key_norm, spec.size, spec.by_head)
        return q, k, normed(own[1], spec.value_norm, spec.size, True), tables

    def rotated(self, x: Tensor, spec: AttentionSpec, positions: Positions) -> Tensor:
        assert isinstance(positions, DevicePositions)
        tables = spec.own(positions.tables)
        return x if tables is None else turned(x, tables, positions.ids, spec.interleaved)

    def attend_to(
        self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, positions: Positions
    ) -> Tensor:
        assert isinstance(positions, DevicePositions)
        y = self._attention.prompt(q.transpose(1, 2), k, v, positions.past, spec)
        return y.unflatten(-1, (spec.heads, -1)).transpose(1, 2)  # type: ignore[no-untyped-call, no-any-return]
