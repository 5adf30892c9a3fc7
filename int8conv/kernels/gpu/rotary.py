# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
# ruff: noqa: N803
"""Rotary positions (arXiv:2104.09864) for queries and keys, and keys and values into the cache, in one kernel.

    y_a = x_a cos - x_b sin        y_b = x_b cos + x_a sin        for pairs (a, b) of the first ``rotated`` elements of a head

Pairs are an element of the first half and its partner of the second, or two neighbours (``interleaved``). Elements
behind ``rotated`` pass. Computed in float32 from float32 tables, rounded once. One program takes one head of one token.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ...errors import ArgumentError
from . import launch as L
from .primitives import narrow


@triton.jit
def rotary_kernel(
    q, k, v, cos, sin, positions, q_out, keys, values,
    q_stride, k_stride, v_stride, tokens_each, capacity, batch_stride, head_stride, position_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, ROTATED: tl.constexpr,
    INTERLEAVED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Head ``program_id(1)`` of the query, then of the key, then of the value, of token ``program_id(0)``."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    position = tl.load(positions + token).to(tl.int64)
    is_query = head < HEADS
    is_value = head >= HEADS + KV_HEADS
    kv_head = (head - HEADS) % KV_HEADS
    slot = (
        (token // tokens_each) * batch_stride + kv_head * head_stride + position * position_stride
    )
    if is_query:
        source = q + token * q_stride + head * D
        target = q_out + (token * HEADS + head) * D
    elif is_value:
        source = v + token * v_stride + kv_head * D
        target = values + slot
    else:
        source = k + token * k_stride + kv_head * D
        target = keys + slot
    in_cache = tl.where(is_query, 0, position)
    width = tl.where(in_cache < 0, 0, tl.where(in_cache < capacity, D, 0))
    dtype: tl.constexpr = q_out.dtype.element_ty
    i = tl.arange(0, BLOCK)
    if ROTATED == 0 or is_value:
        inside = i < width
        tl.store(target + i, tl.load(source + i, mask=inside, other=0.0), mask=inside)
    else:
        pair = i < tl.minimum(width, ROTATED // 2)
        a = 2 * i if INTERLEAVED else i
        b = a + 1 if INTERLEAVED else i + ROTATED // 2
        x = tl.load(source + a, mask=pair, other=0.0).to(tl.float32)
        y = tl.load(source + b, mask=pair, other=0.0).to(tl.float32)
        c = tl.load(cos + position * (ROTATED // 2) + i, mask=pair, other=0.0)
        s = tl.load(sin + position * (ROTATED // 2) + i, mask=pair, other=0.0)
        rest = (i >= ROTATED) & (i < width)
        passed = tl.load(source + i, mask=rest, other=0.0)
        tl.store(target + a, narrow(x * c - y * s, dtype), mask=pair)
        tl.store(target + b, narrow(y * c + x * s, dtype), mask=pair)
        tl.store(target + i, passed, mask=rest)


def rotate_and_store(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: tuple[Tensor, Tensor] | None,
    positions: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    interleaved: bool = False,
) -> Tensor:
    """Rotate queries and keys, and put keys and values into the cache at their positions.

    Args:
        q: 16-bit ``[batch * tokens, heads * head_dim]``; may be part of a wider matrix.
        k: 16-bit ``[batch * tokens, kv_heads * head_dim]``, and ``v``: likewise.
        v: see ``k``.
        tables: cos and sin, float32 ``[positions, rotated / 2]``, contiguous; None: nothing is rotated.
        positions: int32 ``[batch * tokens]``; a token past the cache's capacity is not written.
        keys: cache, 16-bit ``[batch, kv_heads, capacity, head_dim]``, and ``values`` with the same strides.
        values: see ``keys``.
        interleaved: whether pairs are neighbours.

    Returns:
        The queries, ``[batch * tokens, heads, head_dim]``.

    Raises:
        ArgumentError: a shape, dtype or stride that does not fit.
    """
    batch, kv_heads, capacity, size = keys.shape
    rows, heads = q.shape[0], q.shape[1] // size
    for name, x, columns in (("q", q, heads), ("k", k, kv_heads), ("v", v, kv_heads)):
        L.check_rows(name, x, columns * size)
    if rows % max(batch, 1):
        raise ArgumentError("rows of q", expected=f"a multiple of {batch}", found=rows)
    if values.shape != keys.shape or values.stride() != keys.stride() or keys.stride(3) != 1:
        raise ArgumentError("layout of values", expected="that of keys, last axis contiguous", found=values.stride())  # fmt: skip
    rotated = 0 if tables is None else 2 * tables[0].shape[1]
    if rotated > size:
        raise ArgumentError("width of the tables", expected=f"at most {size // 2}", found=rotated // 2)  # fmt: skip
    y = L.empty(rows, heads, size, like=q, dtype=q.dtype)
    cos, sin = (None, None) if tables is None else tables
    L.launch(
        rotary_kernel, (rows, heads + 2 * kv_heads),
        q, k, v, cos, sin, positions, y, keys, values,
        q.stride(0), k.stride(0), v.stride(0), rows // max(batch, 1), capacity,
        keys.stride(0), keys.stride(1), keys.stride(2),
        HEADS=heads, KV_HEADS=kv_heads, D=size, ROTATED=rotated, INTERLEAVED=interleaved,
        BLOCK=L.power_of_two(size), num_warps=1, num_stages=1,
    )  # fmt: skip
    return y
