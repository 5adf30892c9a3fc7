"""What the decoder computes between its linears, with the kernels for GPUs; imports triton.

Activations are 16-bit. A norm or activation function is not computed where the decoder asks for it, but by whatever kernel
reads the result: an activation may be a ``Deferred``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....kernels.gpu.linear import Pending
from ....kernels.gpu.quantize import Before
from ....kernels.gpu.rotary import rotate_and_store
from ....kernels.weight import FallbackCounter
from ...decoder.attention import AttentionSpec, Stored
from ...decoder.norms import NormWeights
from ...decoder.rotary import Rotary
from ...generate.sampler import Request
from ...models.config import Activation, DecoderConfig
from .activations import Deferred, pending, value
from .attention import DeviceAttention, apart, normed
from .cache import DeviceCache
from .decode import DecodeSteps
from .experts import FewTokens
from .sampler import DeviceSampler


@dataclass(frozen=True)
class DevicePlaces:
    """Where the tokens of a call stand, on the device."""

    positions: Tensor
    """int32 ``[b, t]``."""
    filled: Tensor
    """int32 ``[b]``: positions filled once these tokens are."""
    past: int
    """Positions filled before, the same for all sequences if there are several tokens."""
    tables: Sequence[tuple[Tensor, Tensor]]
    """cos and sin, float32 ``[positions, size / 2]``, of each rotary embedding."""

    def to(self, device: torch.device) -> DevicePlaces:
        """They are made where they are needed."""
        return self


class GpuKernels:
    """Triton, and PyTorch's attention for prompts."""

    def __init__(
        self, max_positions: int, device: torch.device, counters: Mapping[str, FallbackCounter] | None = None
    ) -> None:  # fmt: skip
        """``counters``: what the weights' outlier fallbacks have taken, which a step that is run to be captured must not change."""
        self.device = device
        self.counters = {} if counters is None else counters
        self._max_positions = max_positions
        self._tables: list[tuple[Tensor, Tensor]] | None = None
        self._attention = DeviceAttention(device)

    def cache(self, config: DecoderConfig, *, batch: int, capacity: int, dtype: torch.dtype) -> DeviceCache:  # fmt: skip
        return DeviceCache(config, batch=batch, capacity=capacity, dtype=dtype, device=self.device)

    def steps(self, decoder: Any, cache: DeviceCache) -> Callable[[Tensor], Tensor]:
        return DecodeSteps(decoder, cache)

    def layer(self, block: Any) -> None:
        return None

    def sampler(self, requests: Sequence[Request], vocab: int) -> DeviceSampler:
        return DeviceSampler(requests, vocab, self.device)

    def places(self, rotaries: Sequence[Rotary], cache: DeviceCache | None, token_ids: Tensor, dtype: torch.dtype) -> DevicePlaces:  # fmt: skip
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
        return DevicePlaces(before[:, None] + steps, before + tokens, past, tables)

    def _rotary_tables(self, rotaries: Sequence[Rotary]) -> list[tuple[Tensor, Tensor]]:
        """Of all positions, made once. Where frequencies depend on the sequence's length, each position has those of the
        sequence that ends there: what a step needs, without looking at the length."""
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
        before = Before(norm=kind, weight=norm.weight, bias=norm.bias, eps=norm.eps)
        return Deferred(Pending(x.reshape(-1, x.shape[-1]), before), tuple(x.shape))

    def value(self, x: Tensor | Deferred) -> Tensor:
        return value(x)

    def inner(self, wide: Any, x: Tensor | Deferred, activation: Activation, gated: bool) -> Deferred:  # fmt: skip
        rows, shape = pending(x)
        inner: Pending = wide.inner(rows, activation, gated)
        return Deferred(inner, (*shape, inner.x.shape[1]))

    def few_tokens(self, experts: Sequence[Any]) -> FewTokens | None:
        return FewTokens.of(experts)

    def attend(self, qkv: Sequence[Tensor], spec: AttentionSpec, places: DevicePlaces, cache: DeviceCache | None) -> Tensor:  # fmt: skip
        batch, tokens = qkv[0].shape[:2]
        keys: Stored
        values: Stored
        if cache is None:
            shape = (2, batch, spec.kv_heads, tokens, spec.size)
            keys, values = torch.empty(shape, dtype=qkv[0].dtype, device=qkv[0].device)
        else:
            keys, values = cache.layer(spec.layer)
        q, k, v = (y.flatten(0, 1) for y in qkv)
        q = normed(q, spec.query_norm, spec.size, spec.by_head)
        k = normed(k, spec.key_norm, spec.size, spec.by_head)
        tables = places.tables[spec.rotary] if places.tables else None
        stored_keys, stored_values, scales = apart(keys, values)
        q = rotate_and_store(
            q, k, v, tables, places.positions.flatten(), stored_keys, stored_values,
            scales=scales, interleaved=spec.interleaved,
        )  # fmt: skip
        if tokens == 1 and cache is not None:
            return self._attention.step(q, keys, values, places.filled, spec).view(batch, 1, -1)
        q = q.view(batch, tokens, spec.heads, spec.size)
        return self._attention.prompt(q, keys, values, places.past, spec)
