# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
# ruff: noqa: N803
"""Attention of one new token per sequence over the key/value cache.

    o = softmax(scale * q k^T [soft-capped] [+ slope * distance]) v          over the last ``window`` positions, or all

The context of a sequence is split among ``splits`` programs per key/value head, so that few sequences still fill a GPU (flash
decoding). A program processes all query heads of its key/value head at once, as the rows of a dot product: each key and value is
read once. It keeps the running maximum m and sum l of arXiv:1805.02867 in float32 and writes them with its unnormalised
output; a second kernel combines the parts: o = sum exp(m_i - m) o_i / sum exp(m_i - m) l_i.

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
from .primitives import dot16, halve_codes, narrow, tanh

_WIDEST: Final = 256
"""Channels of a head from which on fewer positions at once fit into shared memory (Gemma 4 has 512)."""
_SMALLEST_SCALE = tl.constexpr(2.0**-14)
"""Smallest scale stored in an int8 cache."""


@triton.jit
def _block_scores(
    query, key, key_scales, slopes, head, s, here, length, scale, softcap,
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
        distance = (s - (length - 1)).to(tl.float32)
        scores += tl.load(slopes + head)[:, None] * distance[None, :]
    return tl.where(here[None, :], scores, float("-inf"))


@triton.jit
def _before_any(sinks, head, part, ROWS: tl.constexpr):
    """The running maximum and sum before any position; the first part begins with that of the sinks."""
    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    if sinks is not None:
        peak = tl.where(part == 0, tl.load(sinks + head), peak)
        total += tl.where(part == 0, 1.0, 0.0)
    return peak, total


@triton.jit(do_not_specialize=["scale_batch_stride", "scale_head_stride"])
def attention_kernel(
    q, keys, values, key_scales, value_scales, lengths, slopes, sinks, partial, state,
    scale, softcap, window, D, kv_heads, q_stride, batch_stride, head_stride, position_stride,
    scale_batch_stride, scale_head_stride,
    GROUP: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
    D_FITS: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One part of the context for one sequence and key/value head; ``GROUP`` query heads in ``ROWS`` rows."""
    batch = (tl.program_id(0) // kv_heads).to(tl.int64)
    kv_head = tl.program_id(0) % kv_heads
    part = tl.program_id(1)
    parts = tl.num_programs(1)
    length = tl.load(lengths + batch)
    first = tl.maximum(length - window, 0) if WINDOW else length * 0
    step = tl.cdiv(tl.cdiv(length - first, parts), BLOCK_S) * BLOCK_S
    begin = first + part * step
    end = tl.minimum(begin + step, length)

    row = tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)
    head = kv_head * GROUP + row
    head_or_first = tl.where(row < GROUP, head, 0)
    inside = (row < GROUP)[:, None] & (d < D)[None, :]
    query = tl.load(q + batch * q_stride + head[:, None] * D + d[None, :], mask=inside, other=0.0)
    base = batch * batch_stride + kv_head * head_stride
    scale_base = batch * scale_batch_stride + kv_head * scale_head_stride
    step_base = None if key_scales is None else key_scales + scale_base
    peak, total = _before_any(sinks, head_or_first, part, ROWS)
    out = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for start in tl.range(begin, end, BLOCK_S, num_stages=STAGES):
        s = start + tl.arange(0, BLOCK_S)
        here = s < end
        wanted = here[:, None] if D_FITS else here[:, None] & (d < D)[None, :]
        where = s.to(tl.int64)[:, None] * position_stride + d[None, :]
        key = tl.load(keys + base + where, mask=wanted, other=0)
        scores = _block_scores(
            query, key, step_base, slopes, head_or_first, s, here, length, scale, softcap, ROWS, BLOCK_S, SOFTCAP,
        )  # fmt: skip
        higher = tl.maximum(peak, tl.max(scores, 1))
        shrink = tl.exp(peak - higher)
        weights = tl.exp(scores - higher[:, None])
        total = total * shrink + tl.sum(weights, 1)
        value = tl.load(values + base + where, mask=wanted, other=0)
        if value_scales is None:
            out = dot16(narrow(weights, value.dtype), value, out * shrink[:, None])
        else:
            each = tl.load(value_scales + scale_base + s, mask=here, other=0.0).to(tl.float32)
            unit = tl.maximum(tl.max(each, 0), _SMALLEST_SCALE)
            scaled = narrow(weights * (each / unit)[None, :], query.dtype)
            value = halve_codes(value, query.dtype)
            part_out = dot16(scaled, value, tl.zeros((ROWS, BLOCK_D), tl.float32))
            out = out * shrink[:, None] + part_out * unit
        peak = higher

    slot = (batch * kv_heads * GROUP + head) * parts + part
    tl.store(partial + slot[:, None] * D + d[None, :], out, mask=inside)
    tl.store(state + slot * 2, peak, mask=row < GROUP)
    tl.store(state + slot * 2 + 1, total, mask=row < GROUP)


@triton.jit
def join_kernel(partial, state, out, D, parts, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr):
    """One head of one sequence; zeros for an empty context."""
    slot = tl.program_id(0).to(tl.int64)
    p = tl.arange(0, BLOCK_P)
    d = tl.arange(0, BLOCK_D)
    peaks = tl.load(state + (slot * parts + p) * 2, mask=p < parts, other=float("-inf"))
    totals = tl.load(state + (slot * parts + p) * 2 + 1, mask=p < parts, other=0.0)
    highest = tl.max(peaks, 0)
    weights = tl.where(totals > 0, tl.exp(peaks - tl.where(totals > 0, highest, 0.0)), 0.0)
    total = tl.sum(weights * totals, 0)
    inside = (p < parts)[:, None] & (d < D)[None, :]
    parts_out = tl.load(partial + (slot * parts + p)[:, None] * D + d[None, :], mask=inside, other=0.0)  # fmt: skip
    y = tl.sum(parts_out * weights[:, None], 0) / tl.where(total == 0.0, 1.0, total)
    tl.store(out + slot * D + d, narrow(y, out.dtype.element_ty), mask=d < D)


def attend(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    *,
    scale: float,
    scales: tuple[Tensor, Tensor] | None = None,
    slopes: Tensor | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    config: Config | None = None,
) -> Tensor:
    """Attention of the newest token of each sequence, whose key and value are already in the cache.

    Args:
        q: 16-bit ``[batch, heads, head_dim]``, contiguous except for the first axis.
        keys: 16-bit or int8 ``[batch, kv_heads, capacity, head_dim]``, last axis contiguous; values with the same strides.
        values: the same.
        lengths: int32 ``[batch]``: number of positions filled, including the newest token.
        scale: scale of the scores, usually 1 / sqrt(head_dim).
        scales: float16 ``[batch, kv_heads, capacity, 1]`` for int8 keys and for int8 values, without gaps between positions.
        slopes: float32 ``[heads]``: ALiBi (arXiv:2108.12409).
        window: number of most recent positions attended to; None: all.
        softcap: scores become ``softcap * tanh(scores / softcap)``.
        sinks: float32 ``[heads]``: the score of one more position, whose value is zero (arXiv:2508.10925, section 2).
        config: the launch configuration; None: from the table.

    Returns:
        ``[batch, heads, head_dim]`` in the dtype of ``q``.

    Raises:
        ArgumentError: a shape, dtype or stride is invalid.
    """
    _check(q, keys, values)
    (batch, heads, size), kv_heads = q.shape, keys.shape[1]
    key_scales, value_scales, scale_strides = L.cache_scales(keys, values, scales, q.dtype)
    config = config or choose("attention", L.capability(q.device), tokens=batch * kv_heads)
    parts = config["splits"]
    partial = L.empty(batch, heads, parts, size, like=q, dtype=torch.float32)
    state = L.empty(batch, heads, parts, 2, like=q, dtype=torch.float32)
    y = L.empty(batch, heads, size, like=q, dtype=q.dtype)
    group, block_d = heads // kv_heads, max(L.power_of_two(size), 16)
    block_s, warps = config["block_s"], config["num_warps"]
    if block_d > _WIDEST:
        block_s, warps = block_s * _WIDEST // block_d, 2 * warps
    if scales is not None:  # widened codes take registers, and masks take more of them
        block_s, warps = block_s if block_d == size else block_s // 2, 2 * warps
    L.launch(
        attention_kernel, (batch * kv_heads, parts),
        q, keys, values, key_scales, value_scales, lengths, slopes, sinks, partial, state,
        float(scale), float(softcap or 0.0), window or 0, size, kv_heads,
        q.stride(0), keys.stride(0), keys.stride(1), keys.stride(2), *scale_strides,
        GROUP=group, ROWS=max(L.power_of_two(group), 16), BLOCK_D=block_d, BLOCK_S=block_s,
        D_FITS=block_d == size, SOFTCAP=softcap is not None, WINDOW=window is not None,
        STAGES=config["num_stages"], num_warps=warps, num_stages=config["num_stages"],
    )  # fmt: skip
    L.launch(
        join_kernel, (batch * heads,), partial, state, y, size, parts,
        BLOCK_P=L.power_of_two(parts), BLOCK_D=block_d, num_warps=4, num_stages=1,
    )  # fmt: skip
    return y


def _check(q: Tensor, keys: Tensor, values: Tensor) -> None:
    L.check_half("q", q)
    batch, heads, size = q.shape
    if keys.shape[0] != batch or keys.shape[3] != size or heads % max(keys.shape[1], 1):
        raise ArgumentError("shape of keys", expected=f"[{batch}, a divisor of {heads}, positions, {size}]", found=list(keys.shape))  # fmt: skip
    if values.shape != keys.shape or values.stride() != keys.stride() or keys.stride(3) != 1:
        raise ArgumentError("layout of values", expected="that of keys, last axis contiguous", found=values.stride())  # fmt: skip
    if q.stride()[1:] != (size, 1):
        raise ArgumentError("strides of q's heads", expected=(size, 1), found=q.stride()[1:])
