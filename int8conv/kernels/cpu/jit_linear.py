# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, call-arg, unreachable, var-annotated"
"""Linears for few tokens, compiled by numba: int8 weights with outlier columns, and 16-bit weights.

One or two tokens are multiplied by one row of the weight at a time if they fit a core's first-level cache; longer or more ones by
four rows, so that an activation is loaded once for all four. Sums are float32 and may be reordered (``reassoc``), which allows
vectorization.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from .jit_cache import compiled
from .jit_primitives import (
    BFLOAT16,
    FLOAT16,
    GELU,
    GELU_TANH,
    LAYER_NORM,
    NO_NORM,
    RELU,
    RELU_SQUARED,
    SILU,
    brain,
    exp,
    half,
)

LONG = 6144
"""Number of float32 activations that fit a first-level cache of 32 KiB next to the weight streaming through."""


@compiled()
def _row(codes, i, x, m):
    """Row i of codes times token m."""
    total = np.float32(0)
    for j in range(codes.shape[1]):
        total += np.float32(codes[i, j]) * x[m, j]
    return total


@compiled()
def _row_twice(codes, i, x, m):
    """Row i of codes times tokens m and m + 1."""
    a = b = np.float32(0)
    for j in range(codes.shape[1]):
        w = np.float32(codes[i, j])
        a += w * x[m, j]
        b += w * x[m + 1, j]
    return a, b


@compiled()
def _one_token(codes, i, x, m):
    """Rows i to i + 3 of codes times token m."""
    a = b = c = d = np.float32(0)
    for j in range(codes.shape[1]):
        a += np.float32(codes[i, j]) * x[m, j]
        b += np.float32(codes[i + 1, j]) * x[m, j]
        c += np.float32(codes[i + 2, j]) * x[m, j]
        d += np.float32(codes[i + 3, j]) * x[m, j]
    return a, b, c, d


@compiled()
def _two_tokens(codes, i, x, m):
    """Rows i to i + 3 of codes times tokens m and m + 1: four results for each token."""
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


@compiled()
def _half_row(weight, i, x, m):
    """Row i of float16 bits times token m."""
    total = np.float32(0)
    for j in range(weight.shape[1]):
        total += half(weight[i, j]) * x[m, j]
    return total


@compiled()
def _brain_row(weight, i, x, m):
    """Row i of bfloat16 bits times token m."""
    total = np.float32(0)
    for j in range(weight.shape[1]):
        total += brain(weight[i, j]) * x[m, j]
    return total


@compiled()
def _half_row_of_four(weight, i, x, m):
    """Row i of float16 bits times tokens m to m + 3."""
    a = b = c = d = np.float32(0)
    for j in range(weight.shape[1]):
        w = half(weight[i, j])
        a += w * x[m, j]
        b += w * x[m + 1, j]
        c += w * x[m + 2, j]
        d += w * x[m + 3, j]
    return a, b, c, d


@compiled()
def _brain_row_of_four(weight, i, x, m):
    """Row i of bfloat16 bits times tokens m to m + 3."""
    a = b = c = d = np.float32(0)
    for j in range(weight.shape[1]):
        w = brain(weight[i, j])
        a += w * x[m, j]
        b += w * x[m + 1, j]
        c += w * x[m + 2, j]
        d += w * x[m + 3, j]
    return a, b, c, d


@compiled()
def _short(x, codes, first, end, out):
    """Rows ``first`` to ``end`` times all tokens, one row at a time."""
    tokens = x.shape[0]
    for i in range(first, end):
        for m in range(0, tokens - 1, 2):
            out[m, i], out[m + 1, i] = _row_twice(codes, i, x, m)
        if tokens % 2:
            out[tokens - 1, i] = _row(codes, i, x, tokens - 1)


@compiled()
def _long(x, codes, first, end, out):
    """The same in groups of four, for all complete groups."""
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


@compiled()
def _rows(x, outliers, codes, scale, columns, kind, bias, first, end, out):
    """Rows ``first`` to ``end`` times all tokens, with their outlier columns and bias."""
    fours = 0
    if x.shape[0] > 2 or codes.shape[1] * min(x.shape[0], 2) > LONG:
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


@compiled()
def _activate(x, first, end, activation):
    """Apply an activation function to elements of ``[m, n]``, in place."""
    for m in range(x.shape[0]):
        if activation == SILU:
            for i in range(first, end):
                x[m, i] = x[m, i] / (np.float32(1) + exp(-x[m, i]))
        elif activation == RELU:
            for i in range(first, end):
                x[m, i] = max(x[m, i], np.float32(0))
        elif activation == RELU_SQUARED:
            for i in range(first, end):
                y = max(x[m, i], np.float32(0))
                x[m, i] = y * y
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


@compiled()
def normalised(x, norm, eps, gain, shift):
    """RMSNorm or LayerNorm of each token ``[m, k]``; an empty gain or shift means none."""
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


@compiled(parallel=True)
def linear(
    x, norm, eps, gain, shift, codes, scale, index, columns, kind, bias, activation, gated, residual, parts, out,
):  # fmt: skip
    """``out = act(n(x) @ weight^T + bias) [* (n(x) @ up^T + bias)] [+ residual]``, where n is an optional norm.

    Shapes: x float32 ``[m, k]``; gain and shift float32 ``[k]`` or ``[0]``; codes int8 ``[n, k]``; scale float32 ``[n]``; index
    int32 ``[o]``; columns ``[n, o]``: bits of ``kind``, which is 0 if there are none; bias float32 ``[n]`` or ``[0]``; residual
    float32 ``[m, n]`` or ``[0, 0]``. If ``gated``, the second half of the rows is ``up``. out float32 ``[m, n]`` or ``[m, n / 2]``.
    """
    tokens, rows = x.shape[0], out.shape[1]
    x = normalised(x, norm, eps, gain, shift)
    outliers = np.empty((tokens, index.shape[0]), np.float32)
    for m in range(tokens):
        for j in range(index.shape[0]):
            outliers[m, j] = x[m, index[j]]
    both = np.empty((tokens, 2 * rows), np.float32) if gated else out
    for part in prange(parts):
        first, end = rows * part // parts, rows * (part + 1) // parts
        _rows(x, outliers, codes, scale, columns, kind, bias, first, end, both)
        if gated:
            up, up_end = rows + first, rows + end
            _rows(x, outliers, codes, scale, columns, kind, bias, up, up_end, both)
        _activate(both, first, end, activation)
        for m in range(tokens):
            if gated:
                for i in range(first, end):
                    out[m, i] = both[m, i] * both[m, rows + i]
            if residual.shape[0]:
                for i in range(first, end):
                    out[m, i] += residual[m, i]


@compiled(parallel=True)
def dense(x, weight, kind, out):
    """``out = x @ weight^T``: x float32 ``[m, k]``, weight ``[n, k]``: bits of ``kind``, out float32 ``[m, n]``."""
    fours = x.shape[0] // 4 * 4
    for i in prange(weight.shape[0]):
        for m in range(0, fours, 4):
            sums = _half_row_of_four(weight, i, x, m) if kind == FLOAT16 else _brain_row_of_four(weight, i, x, m)  # fmt: skip
            for r in range(4):
                out[m + r, i] = sums[r]
        for m in range(fours, x.shape[0]):
            out[m, i] = (
                _half_row(weight, i, x, m) if kind == FLOAT16 else _brain_row(weight, i, x, m)
            )
