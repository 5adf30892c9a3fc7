# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
# ruff: noqa: N803
"""A step's attention: one new token per sequence over the key/value cache, with its rotary positions and its place in the cache.

    o = softmax(scale * q k^T [soft-capped] [+ slope * distance]) v          over the last ``window`` positions, or all

The new token's query and key are rotated as in ``rotary``. The context of a sequence is split among ``splits`` programs per
key/value head, so that few sequences still fill a GPU (flash decoding). A program processes all query heads of its key/value head
at once, as the rows of a dot product: each key and value is read once. It keeps the running maximum m and sum l of
arXiv:1805.02867 in float32. The last program of a head, which often has no other positions, adds the new token, from registers, and
stores its key and value. Each program writes m, l and its unnormalized output; the last one to arrive (by an atomic counter per
key/value head, as in ``skinny``) joins the parts: o = sum exp(m_i - m) o_i / sum exp(m_i - m) l_i, in their order.

An int8 cache has a scale per key and value: s_k multiplies the key's score, s_v the value's probability, and codes enter the
dot products directly, exact in 16 bits. Probabilities are then in units of a block's largest s_v, to stay within float16.

The number of parts depends on the shape of the launch, their bounds on each sequence's length on the device, so that a CUDA
graph can be replayed for a longer context. Probabilities are rounded to 16 bits for the second dot product.
"""

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...errors import ArgumentError
from . import launch as L
from .configs import Config, choose
from .primitives import after_previous, dot16, halve_codes, narrow, tanh
from .rotary import in_codes, turned
from .workspace import take

_WIDEST: Final = 256
"""Channels of a head from which on fewer positions at once fit into shared memory (Gemma 4 has 512)."""
_SMALLEST_SCALE = tl.constexpr(2.0**-14)
"""Smallest scale stored in an int8 cache."""
_JOINED_AT_ONCE: Final = 8192
"""Numbers of parts that the last program has in registers."""


@triton.jit
def _block_scores(
    query, key, key_scales, slopes, head, s, here, position, scale, softcap,
    ROWS: tl.constexpr, BLOCK_S: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """float32 scores ``[ROWS, BLOCK_S]`` of the query heads with the keys of positions ``s``; minus infinity where not ``here``."""
    if key_scales is not None:
        key = halve_codes(key, query.dtype)
    scores = dot16(query, tl.trans(key), tl.zeros((ROWS, BLOCK_S), tl.float32)) * scale
    if key_scales is not None:
        key_step = tl.load(key_scales + s, mask=here, other=0.0)
        scores *= key_step.to(tl.float32)[None, :]
    if SOFTCAP:
        scores = softcap * tanh(scores / softcap)
    if slopes is not None:
        distance = (s - position).to(tl.float32)
        scores += tl.load(slopes + head)[:, None] * distance[None, :]
    return tl.where(here[None, :], scores, float("-inf"))


@triton.jit
def _before_any(sinks, head, has_sinks, ROWS: tl.constexpr):
    """The running maximum and sum before any position; one part begins with that of the sinks."""
    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    if sinks is not None:
        peak = tl.where(has_sinks, tl.load(sinks + head), peak)
        total += tl.where(has_sinks, 1.0, 0.0)
    return peak, total


@triton.jit
def _newest(
    query, k_head, v_head, cos, sin, keys, values, key_scales, value_scales, where, scale_where, position, capacity, D,
    scale, softcap, peak, total, out,
    BLOCK_D: tl.constexpr, SOFTCAP: tl.constexpr, ROTATED: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Store the new token's key and value, and add it to the running maximum, sum and output; its distance is 0."""
    d = tl.arange(0, BLOCK_D)
    key = turned(k_head, d, d < D, cos, sin, position, ROTATED, INTERLEAVED)
    value = tl.load(v_head + d, mask=d < D, other=0.0)
    width = tl.where(position < 0, 0, tl.where(position < capacity, D, 0))
    if key_scales is None:
        wide_key = key.to(tl.float32)
        wide_value = value.to(tl.float32)
    else:
        key, key_step = in_codes(key)
        value, value_step = in_codes(value)
        tl.store(key_scales + scale_where, key_step, mask=width > 0)
        tl.store(value_scales + scale_where, value_step, mask=width > 0)
        wide_key = key.to(tl.float32) * key_step.to(tl.float32)
        wide_value = value.to(tl.float32) * value_step.to(tl.float32)
    tl.store(keys + where + d, key, mask=d < width)
    tl.store(values + where + d, value, mask=d < width)
    score = tl.sum(query.to(tl.float32) * wide_key[None, :], 1) * scale
    if SOFTCAP:
        score = softcap * tanh(score / softcap)
    higher = tl.maximum(peak, score)
    shrink = tl.exp(peak - higher)
    weight = tl.exp(score - higher)
    out = out * shrink[:, None] + weight[:, None] * wide_value[None, :]
    return higher, total * shrink + weight, out


@triton.jit
def _divisor(total):
    """Sums of weights; 1 without any."""
    return tl.where(total == 0.0, 1.0, total)


@triton.jit
def _join(partial, state, out, head, count, D, GROUP: tl.constexpr, PARTS: tl.constexpr, MOST: tl.constexpr, BLOCK_D: tl.constexpr,
          AT_ONCE: tl.constexpr):  # fmt: skip
    """Outputs of the ``GROUP`` heads from ``head`` on, from ``count`` parts."""
    p = tl.arange(0, MOST)
    row = tl.arange(0, triton.next_power_of_2(GROUP))
    d = tl.arange(0, BLOCK_D)
    slot = (head + row) * PARTS
    where = state + (slot[None, :] + p[:, None]) * 2
    inside = (p < count)[:, None] & (row < GROUP)[None, :]
    peaks = tl.load(where, mask=inside, other=float("-inf"), cache_modifier=".cg")
    totals = tl.load(where + 1, mask=inside, other=0.0, cache_modifier=".cg")
    highest = tl.max(peaks, 0)
    highest = tl.where(
        highest > float("-inf"), highest, 0.0
    )  # beyond the last head, or without positions
    total = tl.sum(tl.where(inside, tl.exp(peaks - highest[None, :]), 0.0) * totals, 0)
    y = tl.zeros((triton.next_power_of_2(GROUP), BLOCK_D), tl.float32)
    at = tl.arange(0, AT_ONCE)
    for start in tl.range(0, count, AT_ONCE, num_stages=1):
        part = start + at
        here = (part < count)[:, None] & (row < GROUP)[None, :]
        slots = slot[None, :] + part[:, None]
        peak = tl.load(state + slots * 2, mask=here, other=float("-inf"), cache_modifier=".cg")
        weight = tl.where(here, tl.exp(peak - highest[None, :]), 0.0)
        wanted = here[:, :, None] & (d < D)[None, None, :]
        values = tl.load(partial + slots[:, :, None] * D + d[None, None, :], mask=wanted, other=0.0, cache_modifier=".cg")  # fmt: skip
        y += tl.sum(values * weight[:, :, None], 0)
    y = y / _divisor(total)[:, None]
    wanted = (row < GROUP)[:, None] & (d < D)[None, :]
    tl.store(out + (head + row)[:, None] * D + d[None, :], narrow(y, out.dtype.element_ty), mask=wanted)  # fmt: skip


@triton.jit
def _over_cache(
    query, keys, values, key_scales, value_scales, slopes, head, begin, end, position, scale, softcap, D, position_stride, peak, total, out,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr, D_FITS: tl.constexpr, SOFTCAP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The running maximum, sum and output after positions ``begin`` to ``end`` of one head's cache."""
    d = tl.arange(0, BLOCK_D)
    for start in tl.range(begin, end, BLOCK_S, num_stages=STAGES):
        s = start + tl.arange(0, BLOCK_S)
        here = s < end
        wanted = here[:, None] if D_FITS else here[:, None] & (d < D)[None, :]
        where = s.to(tl.int64)[:, None] * position_stride + d[None, :]
        key = tl.load(keys + where, mask=wanted, other=0)
        scores = _block_scores(
            query, key, key_scales, slopes, head, s, here, position, scale, softcap, ROWS, BLOCK_S, SOFTCAP,
        )  # fmt: skip
        higher = tl.maximum(peak, tl.max(scores, 1))
        shrink = tl.exp(peak - higher)
        weights = tl.exp(scores - higher[:, None])
        total = total * shrink + tl.sum(weights, 1)
        value = tl.load(values + where, mask=wanted, other=0)
        if value_scales is None:
            out = dot16(narrow(weights, value.dtype), value, out * shrink[:, None])
        else:
            each = tl.load(value_scales + s, mask=here, other=0.0).to(tl.float32)
            unit = tl.maximum(tl.max(each, 0), _SMALLEST_SCALE)
            scaled = narrow(weights * (each / unit)[None, :], query.dtype)
            value = halve_codes(value, query.dtype)
            part_out = dot16(scaled, value, tl.zeros((ROWS, BLOCK_D), tl.float32))
            out = out * shrink[:, None] + part_out * unit
        peak = higher
    return peak, total, out


@triton.jit
def _arrive(
    partial, state, arrived, y, peak, total, out, first_head, slot, count, D,
    GROUP: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, PARTS: tl.constexpr, MOST: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Write one of ``count`` parts to its ``slot``; the last one to arrive joins them and resets the counter."""
    row = tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)
    slots = (first_head + row) * PARTS + slot
    inside = (row < GROUP)[:, None] & (d < D)[None, :]
    tl.store(partial + slots[:, None] * D + d[None, :], out, mask=inside)
    tl.store(state + slots * 2, peak, mask=row < GROUP)
    tl.store(state + slots * 2 + 1, total, mask=row < GROUP)
    tl.debug_barrier()  # all threads' numbers are written before one of them counts
    before = tl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu")
    if before == count - 1:
        tl.debug_barrier()
        tl.store(arrived, 0)
        _join(partial, state, y, first_head, count, D, GROUP, PARTS, MOST, BLOCK_D, AT_ONCE)


@triton.jit(do_not_specialize=["capacity", "scale_batch_stride", "scale_head_stride"])
def attention_kernel(
    q, k, v, cos, sin, keys, values, key_scales, value_scales, lengths, slopes, sinks, partial, state, arrived, y,
    scale, softcap, window, D, kv_heads, capacity, q_stride, k_stride, v_stride, batch_stride, head_stride, position_stride,
    scale_batch_stride, scale_head_stride,
    GROUP: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr, PARTS: tl.constexpr, MOST: tl.constexpr,
    AT_ONCE: tl.constexpr, D_FITS: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, ROTATED: tl.constexpr,
    INTERLEAVED: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One part of the context for one sequence and key/value head; ``GROUP`` query heads in ``ROWS`` rows."""
    after_previous(PDL)
    batch = (tl.program_id(0) // kv_heads).to(tl.int64)
    kv_head = tl.program_id(0) % kv_heads
    part = tl.program_id(1)
    position = tl.load(lengths + batch) - 1
    first = tl.maximum(position + 1 - window, 0) if WINDOW else position * 0
    cached = position + 1 if k is None else position
    last = tl.maximum(tl.minimum(cached, capacity), first)
    step = tl.cdiv(tl.cdiv(last - first, PARTS), BLOCK_S) * BLOCK_S
    begin = first + part * step
    end = tl.minimum(begin + step, last)

    row = tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)
    head = kv_head * GROUP + row
    head_or_first = tl.where(row < GROUP, head, 0)
    inside = (row < GROUP)[:, None] & (d < D)[None, :]
    query = turned(q + batch * q_stride + head[:, None] * D, d[None, :], inside, cos, sin, position, ROTATED, INTERLEAVED)  # fmt: skip
    base = batch * batch_stride + kv_head * head_stride
    scale_base = batch * scale_batch_stride + kv_head * scale_head_stride
    busy = tl.cdiv(last - first, tl.maximum(step, 1))
    if k is None:
        others = tl.maximum(busy - 1, 0)
        slot = part
        is_last = part == others
    else:
        others = tl.minimum(busy, PARTS - 1)
        slot = tl.minimum(part, others)
        is_last = part == PARTS - 1
    peak, total = _before_any(sinks, head_or_first, is_last, ROWS)
    out = tl.zeros((ROWS, BLOCK_D), tl.float32)
    peak, total, out = _over_cache(
        query, keys + base, values + base, None if key_scales is None else key_scales + scale_base,
        None if value_scales is None else value_scales + scale_base, slopes, head_or_first, begin, end, position, scale, softcap, D,
        position_stride, peak, total, out, ROWS, BLOCK_D, BLOCK_S, D_FITS, SOFTCAP, STAGES,
    )  # fmt: skip
    if k is not None:  # noqa: SIM102  (the one is decided by the compiler)
        if is_last:
            peak, total, out = _newest(
                query, k + batch * k_stride + kv_head * D, v + batch * v_stride + kv_head * D, cos, sin, keys, values,
                key_scales, value_scales, base + position.to(tl.int64) * position_stride, scale_base + position, position, capacity, D,
                scale, softcap, peak, total, out, BLOCK_D, SOFTCAP, ROTATED, INTERLEAVED,
            )  # fmt: skip
    first_head = batch * kv_heads * GROUP + kv_head * GROUP
    if PARTS == 1:
        result = narrow(out / _divisor(total)[:, None], y.dtype.element_ty)
        tl.store(y + (first_head + row)[:, None] * D + d[None, :], result, mask=inside)
    elif (part < others) | is_last:
        _arrive(
            partial, state, arrived + tl.program_id(0), y, peak, total, out, first_head, slot, others + 1, D,
            GROUP, ROWS, BLOCK_D, PARTS, MOST, AT_ONCE,
        )  # fmt: skip


def attend(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    tables: tuple[Tensor, Tensor] | None,
    lengths: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    scale: float,
    scales: tuple[Tensor, Tensor] | None = None,
    slopes: Tensor | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    interleaved: bool = False,
    config: Config | None = None,
) -> Tensor:
    """Attention of a new token of each sequence, which is rotated and stored in the cache.

    Args:
        q: 16-bit ``[batch, heads * head_dim]``; may be part of a wider matrix.
        k: 16-bit ``[batch, kv_heads * head_dim]``; None: the new token's key and value are in the cache, of which nothing is written.
        v: like ``k``.
        tables: cos and sin, float32 ``[positions, rotated / 2]``, contiguous; None: nothing is rotated.
        lengths: int32 ``[batch]``: number of positions filled, including the new token; if that is more than the cache's capacity,
            the new token is attended to, but not stored.
        keys: 16-bit or int8 ``[batch, kv_heads, capacity, head_dim]``, last axis contiguous; values with the same strides.
        values: the same.
        scale: scale of the scores, usually 1 / sqrt(head_dim).
        scales: float16 ``[batch, kv_heads, capacity, 1]`` for int8 keys and for int8 values, without gaps between positions.
        slopes: float32 ``[heads]``: ALiBi (arXiv:2108.12409).
        window: number of most recent positions attended to; None: all.
        softcap: scores become ``softcap * tanh(scores / softcap)``.
        sinks: float32 ``[heads]``: the score of one more position, whose value is zero (arXiv:2508.10925, section 2).
        interleaved: whether pairs that are rotated are adjacent elements.
        config: the launch configuration; None: from the table.

    Returns:
        ``[batch, heads, head_dim]`` in the dtype of ``q``.

    Raises:
        ArgumentError: a shape, dtype or stride is invalid.
    """
    rotated = L.check_heads(q, k, v, tables, keys, values)
    batch, kv_heads, capacity, size = keys.shape
    if len(q) != batch:
        raise ArgumentError("rows of q", expected=batch, found=len(q))
    heads = q.shape[1] // size
    if heads % max(kv_heads, 1):
        raise ArgumentError("heads of q", expected=f"a multiple of {kv_heads}", found=heads)
    key_scales, value_scales, scale_strides = L.cache_scales(keys, values, scales, q.dtype)
    config = config or choose("attention", L.capability(q.device), tokens=batch * kv_heads)
    parts = config["splits"]
    split = parts if parts > 1 else 0
    partial = L.empty(batch, heads, split, size, like=q, dtype=torch.float32)
    state = L.empty(batch, heads, split, 2, like=q, dtype=torch.float32)
    arrived = take(q.device, 0, batch * kv_heads)[1]
    y = L.empty(batch, heads, size, like=q, dtype=q.dtype)
    group, block_d = heads // kv_heads, max(L.power_of_two(size), 16)
    block_s, warps = config["block_s"], config["num_warps"]
    if block_d > _WIDEST:
        block_s, warps = block_s * _WIDEST // block_d, 2 * warps
    if scales is not None:  # widened codes take registers, and masks take more of them
        whole = config.get("int8_block_s", block_s)
        block_s, warps = whole if block_d == size else block_s // 2, 2 * warps
    most = L.power_of_two(parts)
    at_once = max(min(most, _JOINED_AT_ONCE // (L.power_of_two(group) * block_d)), 1)
    cos, sin = (None, None) if tables is None else tables
    L.launch(
        attention_kernel, (batch * kv_heads, parts),
        q, k, v, cos, sin, keys, values, key_scales, value_scales, lengths, slopes, sinks, partial, state, arrived, y,
        float(scale), float(softcap or 0.0), window or 0, size, kv_heads, capacity,
        q.stride(0), 0 if k is None else k.stride(0), 0 if v is None else v.stride(0), keys.stride(0), keys.stride(1), keys.stride(2), *scale_strides,
        GROUP=group, ROWS=max(L.power_of_two(group), 16), BLOCK_D=block_d, BLOCK_S=block_s, PARTS=parts, MOST=most, AT_ONCE=at_once,
        D_FITS=block_d == size, SOFTCAP=softcap is not None, WINDOW=window is not None, ROTATED=rotated, INTERLEAVED=interleaved,
        STAGES=config["num_stages"], PDL=L.overlaps(q.device), num_warps=warps, num_stages=config["num_stages"],
    )  # fmt: skip
    return y
