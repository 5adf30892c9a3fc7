# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, call-arg"
# ruff: noqa: ARG001 - numba asks for these arguments
"""What ``jit`` runs, for numba to compile: importing this takes half a second.

One or two tokens are multiplied with a row of the weight at a time, as long as they stay in a core's first cache; longer
ones with four rows, so that an activation is loaded once for the four. Sums are float32 and may be reordered (``reassoc``):
that is what lets them be vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic

FLOAT16, BFLOAT16 = 1, 2
LONG = 6144
"""Activations, in float32, that a first cache of 32 KiB holds beside the weight that passes through."""
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "cache": True,
    "fastmath": {"reassoc", "contract", "nsz"},
}


@intrinsic
def _half(context, bits):
    """The float32 value of float16 bits, by the processor's own conversion: numba has no 16-bit floats."""

    def generate(context, builder, signature, args):
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic
def _brain(context, bits):
    """The float32 value of bfloat16 bits, which are the upper half of float32's."""

    def generate(context, builder, signature, args):
        wide = builder.zext(args[0], ir.IntType(32))
        return builder.bitcast(builder.shl(wide, ir.Constant(ir.IntType(32), 16)), ir.FloatType())

    return types.float32(types.uint16), generate


@njit(**_OPTIONS)
def _row(codes, x):
    """One row of codes times a token."""
    total = np.float32(0)
    for j in range(codes.shape[0]):
        total += np.float32(codes[j]) * x[j]
    return total


@njit(**_OPTIONS)
def _row_twice(codes, x, y):
    """One row of codes times two tokens."""
    a = b = np.float32(0)
    for j in range(codes.shape[0]):
        w = np.float32(codes[j])
        a += w * x[j]
        b += w * y[j]
    return a, b


@njit(**_OPTIONS)
def _one_token(codes, i, x):
    """Rows i to i + 3 of codes times a token."""
    a = b = c = d = np.float32(0)
    for j in range(codes.shape[1]):
        a += np.float32(codes[i, j]) * x[j]
        b += np.float32(codes[i + 1, j]) * x[j]
        c += np.float32(codes[i + 2, j]) * x[j]
        d += np.float32(codes[i + 3, j]) * x[j]
    return a, b, c, d


@njit(**_OPTIONS)
def _two_tokens(codes, i, x, y):
    """Rows i to i + 3 of codes times two tokens: four results of x, four of y."""
    a = b = c = d = e = f = g = h = np.float32(0)
    for j in range(codes.shape[1]):
        w = np.float32(codes[i, j])
        a += w * x[j]
        e += w * y[j]
        w = np.float32(codes[i + 1, j])
        b += w * x[j]
        f += w * y[j]
        w = np.float32(codes[i + 2, j])
        c += w * x[j]
        g += w * y[j]
        w = np.float32(codes[i + 3, j])
        d += w * x[j]
        h += w * y[j]
    return a, b, c, d, e, f, g, h


@njit(**_OPTIONS)
def _half_row(weight, x):
    """A row of float16 bits times a token."""
    total = np.float32(0)
    for j in range(weight.shape[0]):
        total += _half(weight[j]) * x[j]
    return total


@njit(**_OPTIONS)
def _brain_row(weight, x):
    """A row of bfloat16 bits times a token."""
    total = np.float32(0)
    for j in range(weight.shape[0]):
        total += _brain(weight[j]) * x[j]
    return total


@njit(**_OPTIONS)
def _short(x, codes, out, i):
    """Row i times all tokens."""
    tokens = x.shape[0]
    for m in range(0, tokens - 1, 2):
        out[m, i], out[m + 1, i] = _row_twice(codes[i], x[m], x[m + 1])
    if tokens % 2:
        out[tokens - 1, i] = _row(codes[i], x[tokens - 1])


@njit(**_OPTIONS)
def _long(x, codes, out, i):
    """Rows i to i + 3 times all tokens."""
    tokens = x.shape[0]
    for m in range(0, tokens - 1, 2):
        sums = _two_tokens(codes, i, x[m], x[m + 1])
        for r in range(8):
            out[m + r // 4, i + r % 4] = sums[r]
    if tokens % 2:
        last = _one_token(codes, i, x[tokens - 1])
        for r in range(4):
            out[tokens - 1, i + r] = last[r]


@njit(parallel=True, **_OPTIONS)
def mixed(x, codes, scale, index, columns, kind, out):
    """``out = (x @ codes^T) * scale + x[:, index] @ columns^T``.

    Shapes: x float32 ``[m, k]``, codes int8 ``[n, k]``, scale float32 ``[n]``, index int32 ``[o]``, columns ``[n, o]``: bits of
    ``kind``; out float32 ``[m, n]``.
    """
    tokens, rows = x.shape[0], codes.shape[0]
    outliers = np.empty((tokens, index.shape[0]), np.float32)
    for m in range(tokens):
        for j in range(index.shape[0]):
            outliers[m, j] = x[m, index[j]]
    step = 4 if codes.shape[1] * min(tokens, 2) > LONG else 1
    for block in prange((rows + step - 1) // step):
        first, end = block * step, min((block + 1) * step, rows)
        if first + 4 == end:
            _long(x, codes, out, first)
        for i in range(first, end):
            if first + 4 != end:
                _short(x, codes, out, i)
            for m in range(tokens):
                total = out[m, i] * scale[i]
                if kind == FLOAT16:
                    total += _half_row(columns[i], outliers[m])
                else:
                    total += _brain_row(columns[i], outliers[m])
                out[m, i] = total


@njit(parallel=True, **_OPTIONS)
def dense(x, weight, kind, out):
    """``out = x @ weight^T``: x float32 ``[m, k]``, weight ``[n, k]``: bits of ``kind``, out float32 ``[m, n]``."""
    for i in prange(weight.shape[0]):
        for m in range(x.shape[0]):
            out[m, i] = (
                _half_row(weight[i], x[m]) if kind == FLOAT16 else _brain_row(weight[i], x[m])
            )
