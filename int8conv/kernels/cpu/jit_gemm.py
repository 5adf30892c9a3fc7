# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, call-arg"
"""Linears for many tokens, compiled by numba for processors that multiply 16-bit integers (AVX2) but lack products of int8 (VNNI).

    q_x = rint(x / s),  s = max |x| / 32767         per token and block of at most ``BLOCK`` channels
    y = sum over blocks of s (q_x @ codes^T)

``vpmaddwd`` multiplies 16 pairs of int16 and adds them in twos, twice the multiplications of a float32 instruction. With codes of at most
127 a block's sum is below 512 * 127 * 32767 < 2^31: exact. Eight bits per activation would not be faster here, so there are 16.

A weight's rows pass in panels of ``PANEL``, copied so that a block of a panel stays in the first-level cache while all tokens, in the second,
are multiplied by it: ``ROWS`` rows by ``TOKENS`` tokens at a time, in registers.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from .jit_cache import compiled

BLOCK = 512
PANEL, ROWS, TOKENS, LANES = 16, 4, 2, 16
LARGEST = np.float32(32767)
SMALLEST = np.float32(2.0**-100)
"""A token whose largest magnitude is below is rounded as if that were it: the quotient would overflow."""

_WIDE = ir.VectorType(ir.IntType(16), LANES)
_SUMS = ir.VectorType(ir.IntType(32), LANES // 2)
_FOUR = ir.VectorType(ir.FloatType(), ROWS)
_FIRST = ir.Constant(ir.IntType(32), 0)


@intrinsic
def _add_products(_, x, scales, m, panel, i, count, totals):
    """``totals[m + t, i + r] += scales[m + t] * (x[m + t, :count] . panel[i + r, :count])`` for ``TOKENS`` by ``ROWS`` elements.

    x int16, panel int8, others float32; ``count`` is a multiple of ``LANES``.
    """

    def generate(context, builder, signature, args):
        x, scales, panel, totals = (
            context.make_array(signature.args[n])(context, builder, args[n]) for n in (0, 1, 3, 6)
        )
        m, i, count = args[2], args[4], args[5]
        tokens = [_row(builder, x, m, t) for t in range(TOKENS)]
        rows = [_row(builder, panel, i, r) for r in range(ROWS)]
        found = _loop(builder, tokens, rows, count)
        for t in range(TOKENS):
            sums = _four_sums(builder, *found[t * ROWS : (t + 1) * ROWS])
            scale = builder.load(builder.gep(scales.data, [builder.add(m, ir.Constant(m.type, t))]))
            one = builder.insert_element(ir.Constant(_FOUR, ir.Undefined), scale, _FIRST)
            scale = builder.shuffle_vector(one, one, _places([0] * ROWS))
            place = builder.gep(_row(builder, totals, m, t), [i])
            place = builder.bitcast(place, _FOUR.as_pointer())
            total = builder.load(place)
            total.align = 4
            product = builder.fmul(builder.sitofp(sums, _FOUR), scale)
            builder.store(builder.fadd(total, product), place).align = 4
        return context.get_dummy_value()

    return types.void(x, scales, m, panel, i, count, totals), generate


def _row(builder, array, first, number):
    """The address of row ``first + number`` of an array."""
    size = builder.extract_value(array.strides, 0)
    row = builder.add(first, ir.Constant(first.type, number))
    start = builder.bitcast(array.data, ir.IntType(8).as_pointer())
    return builder.bitcast(builder.gep(start, [builder.mul(row, size)]), array.data.type)


def _loop(builder, tokens, rows, count):
    """Vectors whose elements add up to the product of each token with each row."""
    multiply = builder.module.declare_intrinsic(
        "llvm.x86.avx2.pmadd.wd", (), ir.FunctionType(_SUMS, [_WIDE, _WIDE])
    )
    before = builder.block
    loop, after = (builder.append_basic_block(name) for name in ("products", "sums"))
    builder.branch(loop)
    builder.position_at_end(loop)
    j = builder.phi(count.type)
    sums = [builder.phi(_SUMS) for _ in range(len(tokens) * len(rows))]
    values = [_vector(builder, token, j) for token in tokens]
    added = list(sums)
    for r, row in enumerate(rows):
        weights = builder.sext(_vector(builder, row, j), _WIDE)
        for t, value in enumerate(values):
            n = t * len(rows) + r
            added[n] = builder.add(sums[n], builder.call(multiply, [value, weights]))
    following = builder.add(j, ir.Constant(count.type, LANES))
    builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
    for phi, start, end in [(j, 0, following), *((s, [0] * 8, a) for s, a in zip(sums, added, strict=True))]:  # fmt: skip
        phi.add_incoming(ir.Constant(phi.type, start), before)
        phi.add_incoming(end, loop)
    builder.position_at_end(after)
    return added


def _four_sums(builder, a, b, c, d):
    """The sums of the elements of each of four vectors, as one vector."""
    pairs = builder.module.declare_intrinsic(
        "llvm.x86.avx2.phadd.d", (), ir.FunctionType(_SUMS, [_SUMS, _SUMS])
    )
    both = builder.call(pairs, [builder.call(pairs, [a, b]), builder.call(pairs, [c, d])])
    halves = (builder.shuffle_vector(both, both, _places(range(n, n + ROWS))) for n in (0, ROWS))
    return builder.add(*halves)


def _places(numbers):
    return ir.Constant(ir.VectorType(ir.IntType(32), ROWS), list(numbers))


def _vector(builder, row, j):
    """``LANES`` elements from element ``j`` on."""
    element = row.type.pointee
    kind = ir.VectorType(element, LANES).as_pointer()
    loaded = builder.load(builder.bitcast(builder.gep(row, [j]), kind))
    loaded.align = element.width // 8
    return loaded


@compiled()
def _quantize(x, first, codes, scales, block, m):
    """A block of a token's channels, from ``first`` on, to codes and a scale; what is not finite makes the scale NaN."""
    count = min(block, x.shape[1] - first)
    values = x[m, first : first + count]
    peak, check = np.float32(0), np.float32(0)
    for j in range(count):
        peak = max(peak, abs(values[j]))
        check += values[j] * np.float32(0)
    peak = max(peak, SMALLEST)
    scales[m] = peak / LARGEST + check
    inverse = LARGEST / peak
    for j in range(count):
        codes[m, j] = np.int16(np.rint(values[j] * inverse))
    for j in range(count, codes.shape[1]):
        codes[m, j] = 0


@compiled()
def _panel(codes, first, rows, start, count, panel):
    """A block of a panel's rows, with zeros up to a multiple of ``LANES``."""
    for i in range(rows):
        row = codes[first + i, start : start + count]
        for j in range(count):
            panel[i, j] = row[j]
        for j in range(count, panel.shape[1]):
            panel[i, j] = 0


@compiled(parallel=True)
def product(x, codes, parts, out):
    """``out = x @ codes^T``: x float32 ``[m, k]``, codes int8 ``[n, k]``, out float32 ``[m, n]``; rows in ``parts`` parts."""
    tokens, width = x.shape
    rows = codes.shape[0]
    blocks = -(-width // BLOCK)
    block = -(-width // blocks // LANES) * LANES
    even = -(-tokens // TOKENS) * TOKENS
    values = np.zeros((blocks, even, block), np.int16)
    scales = np.zeros((blocks, even), np.float32)
    for m in prange(tokens):
        for b in range(blocks):
            _quantize(x, b * block, values[b], scales[b], block, m)
    panels = -(-rows // PANEL)
    for part in prange(parts):
        panel = np.zeros((PANEL, block), np.int8)
        totals = np.empty((even, PANEL), np.float32)
        for p in range(panels * part // parts, panels * (part + 1) // parts):
            first = p * PANEL
            here = min(PANEL, rows - first)
            totals[:] = 0
            for b in range(blocks):
                _panel(codes, first, here, b * block, min(block, width - b * block), panel)
                for m in range(0, even, TOKENS):
                    for i in range(0, here, ROWS):
                        _add_products(values[b], scales[b], m, panel, i, block, totals)
            for m in range(tokens):
                for i in range(here):
                    out[m, first + i] = totals[m, i]
