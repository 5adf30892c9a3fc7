# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, call-arg"
"""A decoder layer for one token per sequence, compiled by numba as one call."""

from __future__ import annotations

import numpy as np

from .jit_attention import attend
from .jit_cache import compiled
from .jit_linear import linear, normalised
from .jit_primitives import NO_NORM, RMS_NORM


@compiled()
def _heads(y, count, first, apart, group, size):
    """``count`` heads ``[b, count, size]`` of ``[b, all * size]``: ``group`` consecutive ones, starting at ``first``, every ``apart`` heads."""
    out = np.empty((y.shape[0], count, size), np.float32)
    for b in range(y.shape[0]):
        for head in range(count):
            at = (first + head // group * apart + head % group) * size
            for i in range(size):
                out[b, head, i] = y[b, at + i]
    return out


@compiled()
def _norm_rows(x, gain, eps):
    """RMSNorm of all heads ``[b, h, d]`` together, if the gain covers all of them; returns the gain left to apply per head."""
    if gain.shape[0] <= x.shape[2]:
        return x, gain
    rows = x.reshape(x.shape[0], x.shape[1] * x.shape[2])
    return normalised(rows, RMS_NORM, eps, gain, gain[:0]).reshape(x.shape), gain[:0]


@compiled()
def _added(x, residual_multiplier, y, norm, eps, gain, shift):
    """``x + residual_multiplier * n(y)``."""
    out = normalised(y, norm, eps, gain, shift)
    for b in range(x.shape[0]):
        for i in range(x.shape[1]):
            out[b, i] = x[b, i] + np.float32(residual_multiplier) * out[b, i]
    return out


@compiled()
def layer(
    x, parts, keys, values, lengths, cos, sin,
    norm, eps, gain, shift, post_norm, post_eps, post_gain, post_shift,
    codes, scale, index, columns, bits, bias, by_heads,
    query_gain, key_gain, head_eps, interleaved, score_scale, softcap, slopes, window,
    out_codes, out_scale, out_index, out_columns, out_bits, out_bias, parallel, residual_multiplier,
    mlp_norm, mlp_eps, mlp_gain, mlp_shift, mlp_post_norm, mlp_post_eps, mlp_post_gain, mlp_post_shift,
    wide_codes, wide_scale, wide_index, wide_columns, wide_bits, wide_bias, activation, gated,
    down_codes, down_scale, down_index, down_columns, down_bits, down_bias,
):  # fmt: skip
    """``h = x + m * post(out(attention(qkv(n(x)))))``, then ``h + m * post(down(act(wide(n(h)))))``, m the residual multiplier; if
    ``parallel`` the FFN's input is also x.

    Shapes: x float32 ``[b, hidden]``; norms and weights as in ``linear``, cache and attention as in ``attend``. Returns float32
    ``[b, hidden]``. Arguments are not grouped in tuples, which cost numba a millisecond per token.
    """
    batch, kv_heads, size = x.shape[0], keys.shape[1], keys.shape[3]
    heads = out_codes.shape[1] // size
    group = heads // kv_heads
    none, nothing = np.empty((0, 0), np.float32), np.empty(0, np.float32)
    zero, no = (
        np.int64(0),
        np.bool_(False),
    )  # for each literal, numba would compile linear once more
    y = np.empty((batch, codes.shape[0]), np.float32)
    linear(x, norm, eps, gain, shift, codes, scale, index, columns, bits, bias, zero, no, none, parts, y)  # fmt: skip
    first, apart = (group, group + 2) if by_heads else (heads, 1)
    q = _heads(y, heads, 0, group + 2, group if by_heads else heads, size)
    k = _heads(y, kv_heads, first, apart, 1, size)
    v = _heads(y, kv_heads, first + (1 if by_heads else kv_heads), apart, 1, size)
    q, query_gain = _norm_rows(q, query_gain, head_eps)
    k, key_gain = _norm_rows(k, key_gain, head_eps)
    seen = np.empty((batch, heads, size), np.float32)
    attend(
        q, k, v, query_gain, key_gain, head_eps, cos, sin, interleaved, keys, values, lengths, score_scale, softcap,
        slopes, window, seen,
    )  # fmt: skip
    # the linear adds the residual itself if nothing comes in between
    sums_fused = post_norm == NO_NORM and mlp_post_norm == NO_NORM and residual_multiplier == 1
    h = np.empty_like(x)
    linear(
        seen.reshape(batch, out_codes.shape[1]), zero, 0.0, nothing, nothing, out_codes, out_scale, out_index, out_columns,
        out_bits, out_bias, zero, no, x if sums_fused else none, parts, h,
    )  # fmt: skip
    if not sums_fused:
        h = _added(x, residual_multiplier, h, post_norm, post_eps, post_gain, post_shift)
    inner = np.empty((batch, down_codes.shape[1]), np.float32)
    linear(
        x if parallel else h, mlp_norm, mlp_eps, mlp_gain, mlp_shift, wide_codes, wide_scale, wide_index, wide_columns,
        wide_bits, wide_bias, activation, gated, none, parts, inner,
    )  # fmt: skip
    out = np.empty_like(x)
    linear(
        inner, zero, 0.0, nothing, nothing, down_codes, down_scale, down_index, down_columns, down_bits, down_bias,
        zero, no, h if sums_fused else none, parts, out,
    )  # fmt: skip
    if not sums_fused:
        out = _added(
            h, residual_multiplier, out, mlp_post_norm, mlp_post_eps, mlp_post_gain, mlp_post_shift
        )
    return out
