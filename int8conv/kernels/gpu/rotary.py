# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
# ruff: noqa: N803
"""Rotary positions (arXiv:2104.09864) for queries and keys, and keys and values into the cache, in one kernel.

    y_a = x_a cos - x_b sin        y_b = x_b cos + x_a sin        for pairs (a, b) of the first ``rotated`` elements of a head

Pairs consist of corresponding elements of the first and second half, or of adjacent elements (``interleaved``). Elements after
``rotated`` are unchanged. Computed in float32 from float32 tables, rounded once. One program handles one head of one token.

An int8 cache gets codes and one scale per head and token, computed from the rounded keys and values:

    code = clamp(rint(x / scale), -127, 127)        scale = fp16(clamp(max |x| / 127, 2^-14, 65504))

with IEEE divisions and the rounded scale, bit-identical to the CPU's cache. The scale of a head with a NaN is NaN.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ...errors import ArgumentError
from . import launch as L
from .primitives import narrow, rint

_SMALLEST = tl.constexpr(2.0**-14)
_LARGEST = tl.constexpr(65504.0)
"""Largest float16; ``_SMALLEST`` is the smallest normal one."""


@triton.jit(
    do_not_specialize=["tokens_each", "capacity", "scale_batch_stride", "scale_head_stride"]
)
def rotary_kernel(
    q, k, v, cos, sin, positions, q_out, keys, values, key_scales, value_scales,
    q_stride, k_stride, v_stride, tokens_each, capacity, batch_stride, head_stride, position_stride,
    scale_batch_stride, scale_head_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, ROTATED: tl.constexpr,
    INTERLEAVED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Head ``program_id(1)``, counting query heads, then key heads, then value heads, of token ``program_id(0)``."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    position = tl.load(positions + token).to(tl.int64)
    sequence = token // tokens_each
    kv_head = (head - HEADS) % KV_HEADS
    slot = sequence * batch_stride + kv_head * head_stride + position * position_stride
    scale_slot = sequence * scale_batch_stride + kv_head * scale_head_stride + position
    width = tl.where(position < 0, 0, tl.where(position < capacity, D, 0))
    if head < HEADS:
        source = q + token * q_stride + head * D
        target = q_out + (token * HEADS + head) * D
        _turn(source, target, None, 0, cos, sin, position, D, ROTATED, INTERLEAVED, BLOCK)
    elif head < HEADS + KV_HEADS:
        source = k + token * k_stride + kv_head * D
        _turn(
            source, keys + slot, key_scales, scale_slot,
            cos, sin, position, width, ROTATED, INTERLEAVED, BLOCK,
        )  # fmt: skip
    else:
        source = v + token * v_stride + kv_head * D
        _turn(
            source, values + slot, value_scales, scale_slot,
            cos, sin, position, width, 0, INTERLEAVED, BLOCK,
        )  # fmt: skip


@triton.jit
def _turn(
    source, target, scales, scale_slot, cos, sin, position, width,
    ROTATED: tl.constexpr, INTERLEAVED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store the first ``width`` elements of a head, rotated, to ``target``: as floats, or as codes with one of ``scales``."""
    dtype: tl.constexpr = source.dtype.element_ty
    i = tl.arange(0, BLOCK)
    rest = (i >= ROTATED) & (i < width)
    passed = tl.load(source + i, mask=rest, other=0.0)
    pair = i < tl.minimum(width, ROTATED // 2)
    a = 2 * i if INTERLEAVED else i
    b = a + 1 if INTERLEAVED else i + ROTATED // 2
    first = passed
    second = passed
    if ROTATED > 0:
        x = tl.load(source + a, mask=pair, other=0.0).to(tl.float32)
        y = tl.load(source + b, mask=pair, other=0.0).to(tl.float32)
        c = tl.load(cos + position * (ROTATED // 2) + i, mask=pair, other=0.0)
        s = tl.load(sin + position * (ROTATED // 2) + i, mask=pair, other=0.0)
        first = narrow(x * c - y * s, dtype)
        second = narrow(y * c + x * s, dtype)
    if scales is None:
        if ROTATED > 0:
            tl.store(target + a, first, mask=pair)
            tl.store(target + b, second, mask=pair)
        tl.store(target + i, passed, mask=rest)
    else:
        largest = tl.maximum(_largest(first), tl.maximum(_largest(second), _largest(passed)))
        missing = _not_numbers(first) + _not_numbers(second) + _not_numbers(passed) > 0
        step = _step(largest, missing)
        tl.store(scales + scale_slot, step, mask=width > 0)
        if ROTATED > 0:
            tl.store(target + a, _codes(first, step), mask=pair)
            tl.store(target + b, _codes(second, step), mask=pair)
        tl.store(target + i, _codes(passed, step), mask=rest)


@triton.jit
def turned(head, d, inside, cos, sin, position, ROTATED: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Elements ``d`` of heads that begin at ``head``, rotated, in their dtype; 0 where not ``inside``."""
    x = tl.load(head + d, mask=inside, other=0.0)
    if ROTATED > 0:
        half: tl.constexpr = ROTATED // 2
        turns = d < ROTATED
        if INTERLEAVED:
            other = d ^ 1
            pair = d // 2
            is_first = d % 2 == 0
        else:
            other = tl.where(d < half, d + half, d - half)
            pair = d % half
            is_first = d < half
        y = tl.load(head + other, mask=inside & turns, other=0.0).to(tl.float32)
        row = tl.maximum(position, 0).to(tl.int64) * half
        c = tl.load(cos + row + pair, mask=turns, other=1.0)
        s = tl.load(sin + row + pair, mask=turns, other=0.0)
        rotated = narrow(x.to(tl.float32) * c + y * tl.where(is_first, -s, s), x.dtype)
        x = tl.where(turns, rotated, x)
    return x


@triton.jit
def in_codes(x):
    """int8 codes of a head and their float16 scale."""
    missing = _not_numbers(x) > 0
    step = _step(_largest(x), missing)
    return _codes(x, step), step


@triton.jit
def _step(largest, missing):
    """The float16 scale of a head by its largest magnitude; NaN if numbers are ``missing``."""
    step = tl.minimum(tl.maximum(tl.div_rn(largest, 127.0), _SMALLEST), _LARGEST)
    return tl.where(missing, float("nan"), step).to(tl.float16)


@triton.jit
def _largest(x):
    """The largest magnitude, float32."""
    return tl.max(tl.abs(x.to(tl.float32)), 0)


@triton.jit
def _not_numbers(x):
    """The number of NaNs, which ``tl.max`` ignores."""
    wide = x.to(tl.float32)
    return tl.sum((wide != wide).to(tl.int32), 0)


@triton.jit
def _codes(x, step):
    """int8 codes in units of ``step``; 0 if that is NaN."""
    wide = x.to(tl.float32)
    code = tl.div_rn(wide, step.to(tl.float32) + tl.zeros_like(wide))
    code = tl.where(code == code, code, 0.0)
    return rint(tl.minimum(tl.maximum(code, -127.0), 127.0)).to(tl.int8)


def rotate_and_store(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: tuple[Tensor, Tensor] | None,
    positions: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    scales: tuple[Tensor, Tensor] | None = None,
    interleaved: bool = False,
) -> Tensor:
    """Rotate queries and keys, and store keys and values in the cache at their positions.

    Args:
        q: 16-bit ``[batch * tokens, heads * head_dim]``; may be part of a wider matrix.
        k: 16-bit ``[batch * tokens, kv_heads * head_dim]``.
        v: like ``k``.
        tables: cos and sin, float32 ``[positions, rotated / 2]``, contiguous; None: nothing is rotated.
        positions: int32 ``[batch * tokens]``; a token past the cache's capacity is not written.
        keys: key cache, 16-bit or int8 ``[batch, kv_heads, capacity, head_dim]``.
        values: value cache with the same strides.
        scales: scales of int8 keys and of int8 values, float16 ``[batch, kv_heads, capacity, 1]``, without gaps between positions.
        interleaved: whether pairs are adjacent elements.

    Returns:
        The queries, ``[batch * tokens, heads, head_dim]``.

    Raises:
        ArgumentError: a shape, dtype or stride is invalid.
    """
    batch, kv_heads, capacity, size = keys.shape
    rows, heads = q.shape[0], q.shape[1] // size
    if rows % max(batch, 1):
        raise ArgumentError("rows of q", expected=f"a multiple of {batch}", found=rows)
    rotated = L.check_heads(q, k, v, tables, keys, values)
    key_scales, value_scales, scale_strides = L.cache_scales(keys, values, scales, q.dtype)
    y = L.empty(rows, heads, size, like=q, dtype=q.dtype)
    cos, sin = (None, None) if tables is None else tables
    L.launch(
        rotary_kernel, (rows, heads + 2 * kv_heads),
        q, k, v, cos, sin, positions, y, keys, values, key_scales, value_scales,
        q.stride(0), k.stride(0), v.stride(0), rows // max(batch, 1), capacity,
        keys.stride(0), keys.stride(1), keys.stride(2), *scale_strides,
        HEADS=heads, KV_HEADS=kv_heads, D=size, ROTATED=rotated, INTERLEAVED=interleaved,
        BLOCK=L.power_of_two(size), num_warps=1, num_stages=1,
    )  # fmt: skip
    return y
