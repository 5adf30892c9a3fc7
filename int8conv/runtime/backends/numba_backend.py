"""Decoder layers as one compiled call each, for one new token of few sequences on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.cpu import fused
from ...kernels.dispatch import compiled_tokens
from ..decoder.attention_spec import AttentionSpec, alibi_slopes
from ..decoder.cache import Cache, KVCache
from ..decoder.norms import NormWeights
from ..weights.projections import MixedProjection
from .interface import FusedLayer, Positions
from .parts import BlockParts
from .torch_backend import TorchBackend, TorchPositions


class NumbaBackend(TorchBackend):
    """PyTorch's operators, with compiled layers for single tokens."""

    def fuse_layer(self, block: BlockParts) -> FusedLayer | None:
        compiled, spec = compile_layer(block), block.attention
        if compiled is None:
            return None

        def run(x: Tensor, positions: Positions, cache: Cache | None) -> Tensor | None:
            if x.shape[1] != 1 or len(x) > compiled_tokens() or type(cache) is not KVCache:
                return None
            keys, values = cache.layer(spec.layer)
            if not keys.is_contiguous() or keys.dtype != torch.float32:
                return None
            assert isinstance(positions, TorchPositions)
            if spec.growth and int(positions.ids.max()) >= spec.growth_positions:
                return None
            tables = positions.arrays.get(spec.rotary)
            if tables is None:
                tables = positions.arrays[spec.rotary] = _arrays(spec, positions, len(x))
            return compiled.step(x[:, 0].contiguous(), tables, keys, values, cache.lengths)[:, None]

        return run


def _arrays(spec: AttentionSpec, positions: TorchPositions, batch: int) -> fused.Tables:
    """cos and sin for compiled layers, which all layers with that rotary embedding share."""
    tables = spec.own(positions.tables)
    if tables is not None:
        tables = tables[0].flatten(0, -2), tables[1].flatten(0, -2)
    return fused.as_tables(tables, batch)


def compile_layer(block: BlockParts) -> fused.FusedLayer | None:
    """A layer as one call; None if it has a feature that compiled layers lack."""
    config, spec, ffn = block.config, block.attention, block.ffn
    head_norms = [norm for norm in (spec.query_norm, spec.key_norm) if norm is not None]
    lacking = config.norms == "after sum" or config.norm_rotated or config.sinks or spec.value_norm
    if ffn is None or lacking or not all(norm.rms for norm in head_norms):
        return None
    found = (block.qkv, block.out, ffn.wide, ffn.down)
    projections = [p for p in found if isinstance(p, MixedProjection) and p.mode != "w8a8"]
    if len(projections) < len(found):
        return None
    before_ffn = block.mlp_norm or (block.attn_norm if config.parallel else None)
    norms = (block.attn_norm, block.attn_post_norm, before_ffn, block.mlp_post_norm)
    return fused.FusedLayer(
        [_norm(norm) for norm in norms], _attention(spec, config.fused_qkv == "heads"),
        [(p.weight, p.bias) for p in projections], config.activation, ffn.gated,
        parallel=config.parallel, residual_multiplier=config.residual_scale,
    )  # fmt: skip


def _attention(spec: AttentionSpec, by_heads: bool) -> fused.FusedAttention:
    norms = [norm for norm in (spec.query_norm, spec.key_norm) if norm is not None]
    return fused.FusedAttention(
        spec.scale, spec.window, _gain(spec.query_norm), _gain(spec.key_norm),
        norms[0].eps if norms else 0.0, spec.interleaved, spec.softcap,
        alibi_slopes(spec.heads) * spec.alibi if spec.alibi else None, by_heads,
    )  # fmt: skip


def _norm(norm: NormWeights | None) -> fused.FusedNorm | None:
    return None if norm is None else fused.FusedNorm(norm.rms, norm.eps, norm.weight, norm.bias)


def _gain(norm: NormWeights | None) -> Tensor | None:
    return None if norm is None else norm.weight
