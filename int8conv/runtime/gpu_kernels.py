"""What the decoder computes between its linears, with the kernels for GPUs; imports triton.

Activations are 16-bit. A norm or activation function is not computed where the decoder asks for it, but by whatever kernel
reads the result: an activation may be a ``Deferred``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UnsupportedFeatureError
from ..kernels.gpu.attention import attend
from ..kernels.gpu.linear import Pending
from ..kernels.gpu.quantize import Before
from ..kernels.gpu.rotary import rotate_and_store
from .attention import AttentionSpec
from .config import Activation, DecoderConfig
from .gpu_cache import DeviceCache
from .gpu_decode import DecodeSteps
from .norms import NormWeights
from .torch_kernels import causal_mask


@dataclass(frozen=True)
class Deferred:
    """``[tokens, in]`` with what is still to be done to it, of the shape ``[b, t, in]``."""

    pending: Pending
    shape: tuple[int, ...]


def pending(x: Tensor | Deferred) -> tuple[Pending, tuple[int, ...]]:
    """An activation as rows, and its first axes."""
    if isinstance(x, Deferred):
        return x.pending, x.shape[:-1]
    return Pending(x.reshape(-1, x.shape[-1])), tuple(x.shape[:-1])


@dataclass(frozen=True)
class DevicePlaces:
    """Where the tokens of a call stand, on the device."""

    positions: Tensor
    """int32 ``[b, t]``."""
    filled: Tensor
    """int32 ``[b]``: positions filled once these tokens are."""
    past: int
    """Positions filled before, the same for all sequences if there are several tokens."""
    tables: tuple[Tensor, Tensor] | None


_NOT_YET: Final = (
    "norm_offset", "alibi", "parallel", "embedding_norm", "attention_softcap", "windows", "local_rope",
    "query_norm", "fused_qkv", "fused_gate", "transposed", "experts",
)  # fmt: skip


def check_supported(config: DecoderConfig) -> None:
    """Refuse what the kernels are not joined for yet.

    Raises:
        UnsupportedFeatureError: names the features.
    """
    missing = [name for name in _NOT_YET if getattr(config, name)]
    rope = config.rope
    if rope is not None and (rope.neighbours or rope.share != 1 or rope.kind in ("dynamic", "longrope", "yarn")):  # fmt: skip
        missing.append(f"rotary positions of the kind {rope.kind}")
    if config.norms not in ("before", "after sum"):
        missing.append(f"norms {config.norms}")
    if missing:
        raise UnsupportedFeatureError(f"not on a GPU yet: {', '.join(missing)}",
                                      found=config.model_type, hint="run it on the CPU")  # fmt: skip


class GpuKernels:
    """Triton, and PyTorch's attention for prompts."""

    def __init__(self, max_positions: int, device: torch.device) -> None:
        self.device = device
        self._max_positions = max_positions
        self._tables: tuple[Tensor, Tensor] | None = None

    def cache(self, config: DecoderConfig, *, batch: int, capacity: int, dtype: torch.dtype) -> DeviceCache:  # fmt: skip
        return DeviceCache(config, batch=batch, capacity=capacity, dtype=dtype, device=self.device)

    def steps(self, decoder: Any, cache: DeviceCache) -> Callable[[Tensor], Tensor]:
        return DecodeSteps(decoder, cache)

    def layer(self, block: Any) -> None:
        return None

    def places(self, rotaries: Any, cache: DeviceCache | None, token_ids: Tensor, dtype: torch.dtype) -> DevicePlaces:  # fmt: skip
        batch, tokens = token_ids.shape
        device = token_ids.device
        steps = torch.arange(tokens, dtype=torch.int32, device=device)
        before = torch.zeros(batch, dtype=torch.int32, device=device) if cache is None else cache.lengths  # fmt: skip
        tables = self._rotary_tables(rotaries[0]) if rotaries else None
        past = 0 if cache is None else cache.length
        return DevicePlaces(before[:, None] + steps, before + tokens, past, tables)

    def _rotary_tables(self, rotary: Any) -> tuple[Tensor, Tensor]:
        """cos and sin of all positions, float32 ``[positions, d / 2]``, made once."""
        if self._tables is None:
            angles = torch.arange(self._max_positions).float()[:, None] * rotary.frequencies
            self._tables = (angles.cos().to(self.device), angles.sin().to(self.device))
        return self._tables

    def norm(self, x: Tensor, norm: NormWeights) -> Deferred:
        kind = "rms" if norm.rms else "layer"
        before = Before(norm=kind, weight=norm.weight, bias=norm.bias, eps=norm.eps)
        return Deferred(Pending(x.reshape(-1, x.shape[-1]), before), tuple(x.shape))

    def value(self, x: Tensor | Deferred) -> Tensor:
        return x.pending.value().view(x.shape) if isinstance(x, Deferred) else x

    def inner(self, wide: Any, x: Tensor | Deferred, activation: Activation) -> Deferred:
        rows, shape = pending(x)
        inner: Pending = wide.inner(rows, activation)
        return Deferred(inner, (*shape, inner.x.shape[1]))

    def attend(self, qkv: Sequence[Tensor], spec: AttentionSpec, places: DevicePlaces, cache: DeviceCache | None) -> Tensor:  # fmt: skip
        batch, tokens = qkv[0].shape[:2]
        size, scale = spec.size, spec.scale
        if cache is None:
            shape = (2, batch, spec.kv_heads, tokens, size)
            keys, values = torch.empty(shape, dtype=qkv[0].dtype, device=qkv[0].device)
        else:
            keys, values = cache.layer(spec.layer)
        q, k, v = (y.flatten(0, 1) for y in qkv)
        q = rotate_and_store(q, k, v, places.tables, places.positions.flatten(), keys, values)
        if tokens == 1 and cache is not None:
            y = attend(q, keys, values, places.filled, scale=scale)
            return y.view(batch, 1, -1)
        end = places.past + tokens
        y = F.scaled_dot_product_attention(
            q.view(batch, tokens, -1, size).transpose(1, 2), keys[:, :, :end], values[:, :, :end],
            attn_mask=causal_mask(tokens, places.past, q.device) if places.past else None,
            is_causal=places.past == 0, scale=scale,
            enable_gqa=spec.heads != spec.kv_heads,
        )  # fmt: skip
        return y.transpose(1, 2).flatten(2)
