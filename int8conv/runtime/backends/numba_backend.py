"""A decoder's layers as one compiled call each, where a CPU has one new token of a few sequences to compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...kernels.cpu.fused import FusedAttention, FusedLayer, FusedNorm
from ...kernels.crossovers import COMPILED_TOKENS
from ...kernels.dispatch import Mode, mixed_linear
from ...kernels.weight import MixedWeight
from ..decoder.attention import AttentionSpec, alibi_slopes
from ..decoder.cache import KVCache
from ..decoder.norms import NormWeights
from .torch_backend import TorchKernels


class MixedProjection:
    """Linears of one input, one int8 matrix.

    Args:
        weight: theirs, one under the other.
        bias: ``[out]`` or None.
        sizes: how many of the rows each has.
        mode: as for ``mixed_linear``.
    """

    def __init__(self, weight: MixedWeight, bias: Tensor | None, sizes: Sequence[int], mode: Mode | None) -> None:  # fmt: skip
        self.weight = weight
        self.bias = bias
        self.sizes = list(sizes)
        self.mode = mode

    def __call__(self, x: Tensor, *, residual: Tensor | None = None) -> Sequence[Tensor]:
        y = mixed_linear(x, self.weight, self.bias, mode=self.mode)
        return y.split_with_sizes(self.sizes, dim=-1) if residual is None else [residual + y]


class CpuKernels(TorchKernels):
    """PyTorch's operators, but for single tokens compiled layers."""

    def layer(self, block: Any) -> Callable[[Tensor, Any, Any], Tensor | None] | None:
        fused = fuse(block)
        if fused is None:
            return None
        spec: AttentionSpec = block.attention.spec

        def run(x: Tensor, places: Any, cache: Any) -> Tensor | None:
            if x.shape[1] != 1 or len(x) > COMPILED_TOKENS or type(cache) is not KVCache:
                return None
            keys, values = cache.layer(spec.layer)
            if not keys.is_contiguous() or keys.dtype != torch.float32:
                return None
            tables = places.tables[spec.rotary] if places.tables else None
            if tables is not None:
                tables = tables[0].flatten(0, -2), tables[1].flatten(0, -2)
            return fused(x[:, 0].contiguous(), tables, keys, values, cache.lengths)[:, None]

        return run


def fuse(block: Any) -> FusedLayer | None:
    """A block of the decoder as one call; None: it has something that ``FusedLayer`` has not."""
    config, spec, ffn = block.config, block.attention.spec, block.ffn
    head_norms = [norm for norm in (spec.query_norm, spec.key_norm) if norm is not None]
    if config.norms == "after sum" or not all(norm.rms for norm in head_norms):
        return None
    found = [block.attention.qkv, block.attention.out]
    found += [getattr(ffn, "wide", None), getattr(ffn, "down", None)]  # experts have neither
    projections = [p for p in found if isinstance(p, MixedProjection) and p.mode != "w8a8"]
    if len(projections) < len(found):
        return None
    attention = FusedAttention(
        spec.scale, spec.window, _gain(spec.query_norm), _gain(spec.key_norm),
        head_norms[0].eps if head_norms else 0.0, spec.interleaved, spec.softcap,
        alibi_slopes(spec.heads) * spec.alibi if spec.alibi else None, config.fused_qkv == "heads",
    )  # fmt: skip
    before_ffn = block.mlp_norm or (block.attn_norm if config.parallel else None)
    norms = (block.attn_norm, block.attn_post_norm, before_ffn, block.mlp_post_norm)
    return FusedLayer(
        [_norm(norm) for norm in norms], attention, [(p.weight, p.bias) for p in projections],
        config.activation, ffn.gated, parallel=config.parallel, share=config.residual_scale,
    )  # fmt: skip


def _norm(norm: Any) -> FusedNorm | None:
    if norm is None:
        return None
    found: NormWeights = norm.weights
    return FusedNorm(found.rms, found.eps, found.weight, found.bias)


def _gain(norm: NormWeights | None) -> Tensor | None:
    return None if norm is None else norm.weight
