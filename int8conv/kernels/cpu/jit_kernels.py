# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, call-arg"
# ruff: noqa: ARG001 - numba asks for these arguments
"""What ``jit`` runs, for numba to compile: importing this takes half a second.

One or two tokens are multiplied with a row of the weight at a time, as long as they stay in a core's first cache; longer
ones with four rows, so that an activation is loaded once for the four. Sums are float32 and may be reordered (``reassoc``):
that is what lets them be vectors.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic

FLOAT16, BFLOAT16 = 1, 2
NO_NORM, RMS_NORM, LAYER_NORM = range(3)
NO_ACTIVATION, SILU, RELU, GELU, GELU_TANH = range(5)
LONG = 6144
"""Activations, in float32, that a first cache of 32 KiB holds beside the weight that passes through."""
OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "fastmath": {"reassoc", "contract", "nsz"}}  # fmt: skip


@intrinsic
def _half(context, bits):
    """The float32 value of float16 bits, by the processor's own conversion: numba has no 16-bit floats."""

    def generate(context, builder, signature, args):
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic
def _float_of_bits(context, bits):
    """The float32 with these bits."""

    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), generate


@njit(**OPTIONS)
def _brain(bits):
    """The float32 value of bfloat16 bits, which are the upper half of float32's."""
    return _float_of_bits(np.int32(np.uint32(bits) << np.uint32(16)))


@njit(**OPTIONS)
def exp(x):
    """e^x to some 3e-7 of it, for a loop that is to be vectors: no call, no branch.

    2^n e^r with |r| <= ln(2) / 2, its series to the seventh power. 1e-38 below -87.3, infinity above 88.7.
    """
    inside = min(max(x, np.float32(-87.3)), np.float32(88.7))
    n = np.floor(inside * np.float32(1.442695041) + np.float32(0.5))
    r = np.float32(inside - n * np.float32(0.693145752)) - n * np.float32(1.42860677e-6)
    y = np.float32(1 / 5040)
    y = y * r + np.float32(1 / 720)
    y = y * r + np.float32(1 / 120)
    y = y * r + np.float32(1 / 24)
    y = y * r + np.float32(1 / 6)
    y = y * r + np.float32(0.5)
    y = y * r + np.float32(1)
    y = y * r + np.float32(1)
    return y * _float_of_bits(np.int32((np.int32(n) + np.int32(127)) << np.int32(23)))


@njit(**OPTIONS)
def _row(codes, i, x, m):
    """Row i of codes times token m."""
    total = np.float32(0)
    for j in range(codes.shape[1]):
        total += np.float32(codes[i, j]) * x[m, j]
    return total


@njit(**OPTIONS)
def _row_twice(codes, i, x, m):
    """Row i of codes times tokens m and m + 1."""
    a = b = np.float32(0)
    for j in range(codes.shape[1]):
        w = np.float32(codes[i, j])
        a += w * x[m, j]
        b += w * x[m + 1, j]
    return a, b


@njit(**OPTIONS)
def _one_token(codes, i, x, m):
    """Rows i to i + 3 of codes times token m."""
    a = b = c = d = np.float32(0)
    for j in range(codes.shape[1]):
        a += np.float32(codes[i, j]) * x[m, j]
        b += np.float32(codes[i + 1, j]) * x[m, j]
        c += np.float32(codes[i + 2, j]) * x[m, j]
        d += np.float32(codes[i + 3, j]) * x[m, j]
    return a, b, c, d


@njit(**OPTIONS)
def _two_tokens(codes, i, x, m):
    """Rows i to i + 3 of codes times tokens m and m + 1: four results of the one, four of the other."""
    a = b = c = d = e = f = g = h = np.float32(0)
    for j in range(codes.shape[1]):
        w = np.float32(codes[i, j])
        a += w * x[m, j]
        e += w * x[m + 1, j]
        w = np.float32(codes[i + 1, j])
        b += w * x[m, j]
        f += w * x[m + 1, j]
        w = np.float32(codes[i + 2, j])
        c += w * x[m, j]
        g += w * x[m + 1, j]
        w = np.float32(codes[i + 3, j])
        d += w * x[m, j]
        h += w * x[m + 1, j]
    return a, b, c, d, e, f, g, h


@njit(**OPTIONS)
def _half_row(weight, i, x, m):
    """Row i of float16 bits times token m."""
    total = np.float32(0)
    for j in range(weight.shape[1]):
        total += _half(weight[i, j]) * x[m, j]
    return total


@njit(**OPTIONS)
def _brain_row(weight, i, x, m):
    """Row i of bfloat16 bits times token m."""
    total = np.float32(0)
    for j in range(weight.shape[1]):
        total += _brain(weight[i, j]) * x[m, j]
    return total


@njit(**OPTIONS)
def _short(x, codes, first, end, out):
    """Rows ``first`` to ``end``, one by one, times all tokens."""
    tokens = x.shape[0]
    for i in range(first, end):
        for m in range(0, tokens - 1, 2):
            out[m, i], out[m + 1, i] = _row_twice(codes, i, x, m)
        if tokens % 2:
            out[tokens - 1, i] = _row(codes, i, x, tokens - 1)


@njit(**OPTIONS)
def _long(x, codes, first, end, out):
    """The same four by four, as many as are whole fours."""
    tokens = x.shape[0]
    for i in range(first, end - 3, 4):
        for m in range(0, tokens - 1, 2):
            sums = _two_tokens(codes, i, x, m)
            for r in range(8):
                out[m + r // 4, i + r % 4] = sums[r]
        if tokens % 2:
            last = _one_token(codes, i, x, tokens - 1)
            for r in range(4):
                out[tokens - 1, i + r] = last[r]


@njit(**OPTIONS)
def _rows(x, outliers, codes, scale, columns, kind, bias, first, end, out):
    """Rows ``first`` to ``end`` times all tokens, with their outlier columns and bias."""
    fours = 0
    if codes.shape[1] * min(x.shape[0], 2) > LONG:
        fours = (end - first) // 4 * 4
        _long(x, codes, first, first + fours, out)
    _short(x, codes, first + fours, end, out)
    for m in range(x.shape[0]):
        for i in range(first, end):
            total = out[m, i] * scale[i]
            if kind == FLOAT16:
                total += _half_row(columns, i, outliers, m)
            elif kind == BFLOAT16:
                total += _brain_row(columns, i, outliers, m)
            out[m, i] = total + bias[i] if bias.shape[0] else total


@njit(**OPTIONS)
def _activate(x, first, end, activation):
    """An activation function of elements of ``[m, n]``, in place."""
    for m in range(x.shape[0]):
        if activation == SILU:
            for i in range(first, end):
                x[m, i] = x[m, i] / (np.float32(1) + exp(-x[m, i]))
        elif activation == RELU:
            for i in range(first, end):
                x[m, i] = max(x[m, i], np.float32(0))
        elif activation == GELU_TANH:
            for i in range(first, end):
                y = x[m, i]
                inner = np.float32(0.7978845608) * (y + np.float32(0.044715) * y * y * y)
                # (1 + tanh z) / 2 = 1 / (1 + e^-2z)
                x[m, i] = y / (np.float32(1) + exp(np.float32(-2) * inner))
        elif activation == GELU:
            for i in range(first, end):
                y = x[m, i]
                x[m, i] = np.float32(0.5 * y * (1.0 + math.erf(y * math.sqrt(0.5))))


@njit(**OPTIONS)
def normalised(x, norm, eps, gain, shift):
    """RMSNorm or LayerNorm of each token ``[m, k]``; a gain or shift of no elements is none."""
    if norm == NO_NORM:
        return x
    out = np.empty_like(x)
    size = x.shape[1]
    for m in range(x.shape[0]):
        mean = np.float32(0)
        if norm == LAYER_NORM:
            for j in range(size):
                mean += x[m, j]
            mean /= np.float32(size)
        total = np.float32(0)
        for j in range(size):
            total += (x[m, j] - mean) * (x[m, j] - mean)
        scale = np.float32(1) / np.sqrt(total / np.float32(size) + np.float32(eps))
        for j in range(size):
            out[m, j] = (x[m, j] - mean) * scale
        if gain.shape[0]:
            for j in range(size):
                out[m, j] *= gain[j]
        if shift.shape[0]:
            for j in range(size):
                out[m, j] += shift[j]
    return out


@njit(parallel=True, **OPTIONS)
def linear(
    x, norm, eps, gain, shift, codes, scale, index, columns, kind, bias, activation, paired, residual, parts, out,
):  # fmt: skip
    """``out = act(n(x) @ weight^T + bias) [* (n(x) @ up^T + bias)] [+ residual]``, n a norm or nothing.

    Shapes: x float32 ``[m, k]``; gain and shift float32 ``[k]`` or ``[0]``; codes int8 ``[n, k]``; scale float32 ``[n]``; index
    int32 ``[o]``; columns ``[n, o]``: bits of ``kind``, 0 where there are none; bias float32 ``[n]`` or ``[0]``; residual
    float32 ``[m, n]`` or ``[0, 0]``. If ``paired`` the upper half of the rows is ``up``. out float32 ``[m, n]``, or ``[m, n / 2]``.
    """
    tokens, rows = x.shape[0], out.shape[1]
    x = normalised(x, norm, eps, gain, shift)
    outliers = np.empty((tokens, index.shape[0]), np.float32)
    for m in range(tokens):
        for j in range(index.shape[0]):
            outliers[m, j] = x[m, index[j]]
    both = np.empty((tokens, 2 * rows), np.float32) if paired else out
    for part in prange(parts):
        first, end = rows * part // parts, rows * (part + 1) // parts
        _rows(x, outliers, codes, scale, columns, kind, bias, first, end, both)
        if paired:
            up, up_end = rows + first, rows + end
            _rows(x, outliers, codes, scale, columns, kind, bias, up, up_end, both)
        _activate(both, first, end, activation)
        for m in range(tokens):
            if paired:
                for i in range(first, end):
                    out[m, i] = both[m, i] * both[m, rows + i]
            if residual.shape[0]:
                for i in range(first, end):
                    out[m, i] += residual[m, i]


@njit(parallel=True, **OPTIONS)
def dense(x, weight, kind, out):
    """``out = x @ weight^T``: x float32 ``[m, k]``, weight ``[n, k]``: bits of ``kind``, out float32 ``[m, n]``."""
    for i in prange(weight.shape[0]):
        for m in range(x.shape[0]):
            out[m, i] = (
                _half_row(weight, i, x, m) if kind == FLOAT16 else _brain_row(weight, i, x, m)
            )


@njit(**OPTIONS)
def _place(x, b, head, gain, eps, cos, sin, interleaved):
    """Norm and rotation of a head, in place; cos and sin hold each pair's value twice, side by side if pairs are ``neighbours``."""
    size = x.shape[2]
    if gain.shape[0]:
        total = np.float32(0)
        for i in range(size):
            total += x[b, head, i] * x[b, head, i]
        scale = np.float32(1) / np.sqrt(total / np.float32(size) + np.float32(eps))
        for i in range(size):
            x[b, head, i] *= scale * gain[i]
    half = cos.shape[1] // 2
    if interleaved:
        for i in range(0, 2 * half, 2):
            y, z = x[b, head, i], x[b, head, i + 1]
            x[b, head, i] = y * cos[b, i] - z * sin[b, i]
            x[b, head, i + 1] = z * cos[b, i] + y * sin[b, i]
        return
    for i in range(half):
        y, z = x[b, head, i], x[b, head, i + half]
        x[b, head, i] = y * cos[b, i] - z * sin[b, i]
        x[b, head, i + half] = z * cos[b, i] + y * sin[b, i]


@njit(**OPTIONS)
def _scores(q, keys, b, head, kv, first, scale, softcap, slopes, scores):
    """Of a query with the keys from position ``first`` on; itself the last. Returns the highest."""
    count = scores.shape[0]
    for s in range(count):
        total = np.float32(0)
        for i in range(q.shape[2]):
            total += q[b, head, i] * keys[b, kv, first + s, i]
        scores[s] = total * np.float32(scale)
    if softcap:
        cap = np.float32(softcap)
        for s in range(count):  # cap tanh(y / cap)
            scores[s] = cap - np.float32(2) * cap / (
                np.float32(1) + exp(np.float32(2) * scores[s] / cap)
            )
    if slopes.shape[0]:
        for s in range(count):
            scores[s] -= slopes[head] * np.float32(count - 1 - s)
    highest = np.float32(-np.inf)
    for s in range(count):
        highest = max(highest, scores[s])
    return highest


@njit(**OPTIONS)
def _values(scores, highest, values, b, head, kv, first, out):
    """Softmax of the scores, times the values."""
    total = np.float32(0)
    for s in range(scores.shape[0]):
        scores[s] = exp(scores[s] - highest)
        total += scores[s]
    for i in range(out.shape[2]):
        out[b, head, i] = 0
    for s in range(scores.shape[0]):
        share = scores[s] / total
        for i in range(out.shape[2]):
            out[b, head, i] += share * values[b, kv, first + s, i]


@njit(parallel=True, **OPTIONS)
def attend(
    q, k, v, query_gain, key_gain, eps, cos, sin, interleaved, keys, values, lengths, scale, softcap, slopes, window, out,
):  # fmt: skip
    """Attention of one token of each sequence, whose key and value go into the cache at ``lengths``.

    Shapes: q and out float32 ``[b, h, d]``; k and v ``[b, kv_heads, d]``; gains of the RMSNorms of heads ``[d]`` or ``[0]``; cos
    and sin ``[b, rotated]``; keys and values ``[b, kv_heads, capacity, d]``; lengths int64 ``[b]``; slopes of ALiBi ``[h]`` or
    ``[0]``; softcap 0: none; window 0: all positions. q and k are changed. Raises IndexError where the cache is full.
    """
    batch, heads, kv_heads = q.shape[0], q.shape[1], k.shape[1]
    for b in range(batch):
        if lengths[b] >= keys.shape[2]:
            raise IndexError("the cache is full")
        for kv in range(kv_heads):
            _place(k, b, kv, key_gain, eps, cos, sin, interleaved)
            for i in range(k.shape[2]):
                keys[b, kv, lengths[b], i] = k[b, kv, i]
                values[b, kv, lengths[b], i] = v[b, kv, i]
    for task in prange(batch * heads):
        b, head = task // heads, task % heads
        kv = head // (heads // kv_heads)
        _place(q, b, head, query_gain, eps, cos, sin, interleaved)
        end = lengths[b] + 1
        first = max(0, end - window) if window else 0
        scores = np.empty(end - first, np.float32)
        highest = _scores(q, keys, b, head, kv, first, scale, softcap, slopes, scores)
        _values(scores, highest, values, b, head, kv, first, out)


@njit(**OPTIONS)
def _heads(y, count, first, apart, group, size):
    """``count`` heads ``[b, count, size]`` of ``[b, all * size]``: ``group`` in a row from head ``first`` on, every ``apart`` heads."""
    out = np.empty((y.shape[0], count, size), np.float32)
    for b in range(y.shape[0]):
        for head in range(count):
            at = (first + head // group * apart + head % group) * size
            for i in range(size):
                out[b, head, i] = y[b, at + i]
    return out


@njit(**OPTIONS)
def _norm_rows(x, gain, eps):
    """RMSNorm of all heads together, ``[b, h, d]``, if the gain is theirs; and the gain that is left, for each head."""
    if gain.shape[0] <= x.shape[2]:
        return x, gain
    rows = x.reshape(x.shape[0], x.shape[1] * x.shape[2])
    return normalised(rows, RMS_NORM, eps, gain, gain[:0]).reshape(x.shape), gain[:0]


@njit(**OPTIONS)
def _added(x, share, y, norm, eps, gain, shift):
    """``x + share * n(y)``."""
    out = normalised(y, norm, eps, gain, shift)
    for b in range(x.shape[0]):
        for i in range(x.shape[1]):
            out[b, i] = x[b, i] + np.float32(share) * out[b, i]
    return out


@njit(**OPTIONS)
def layer(
    x, parts, keys, values, lengths, cos, sin,
    norm, eps, gain, shift, post_norm, post_eps, post_gain, post_shift,
    codes, scale, index, columns, bits, bias, by_heads,
    query_gain, key_gain, head_eps, interleaved, score_scale, softcap, slopes, window,
    out_codes, out_scale, out_index, out_columns, out_bits, out_bias, parallel, share,
    mlp_norm, mlp_eps, mlp_gain, mlp_shift, mlp_post_norm, mlp_post_eps, mlp_post_gain, mlp_post_shift,
    wide_codes, wide_scale, wide_index, wide_columns, wide_bits, wide_bias, activation, paired,
    down_codes, down_scale, down_index, down_columns, down_bits, down_bias,
):  # fmt: skip
    """``h = x + share * post(out(attention(qkv(n(x)))))``, then ``h + share * post(down(act(wide(n(h)))))``; if ``parallel`` the FFN's
    input is x as well.

    Shapes: x float32 ``[b, hidden]``; norms and weights as ``linear`` has them, cache and attention as ``attend``. Returns
    float32 ``[b, hidden]``. One by one, not in tuples: those cost numba a millisecond a token.
    """
    batch, kv_heads, size = x.shape[0], keys.shape[1], keys.shape[3]
    heads = out_codes.shape[1] // size
    group = heads // kv_heads
    none, nothing = np.empty((0, 0), np.float32), np.empty(0, np.float32)
    zero, no = np.int64(0), np.bool_(False)  # of literals numba would compile linear once more each
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
    whole = post_norm == NO_NORM and mlp_post_norm == NO_NORM and share == 1
    h = np.empty_like(x)
    linear(
        seen.reshape(batch, out_codes.shape[1]), zero, 0.0, nothing, nothing, out_codes, out_scale, out_index, out_columns,
        out_bits, out_bias, zero, no, x if whole else none, parts, h,
    )  # fmt: skip
    if not whole:
        h = _added(x, share, h, post_norm, post_eps, post_gain, post_shift)
    inner = np.empty((batch, down_codes.shape[1]), np.float32)
    linear(
        x if parallel else h, mlp_norm, mlp_eps, mlp_gain, mlp_shift, wide_codes, wide_scale, wide_index, wide_columns,
        wide_bits, wide_bias, activation, paired, none, parts, inner,
    )  # fmt: skip
    out = np.empty_like(x)
    linear(
        inner, zero, 0.0, nothing, nothing, down_codes, down_scale, down_index, down_columns, down_bits, down_bias,
        zero, no, h if whole else none, parts, out,
    )  # fmt: skip
    if not whole:
        out = _added(h, share, out, mlp_post_norm, mlp_post_eps, mlp_post_gain, mlp_post_shift)
    return out
