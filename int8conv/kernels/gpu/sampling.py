# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
# ruff: noqa: N803
"""The next token of each sequence, sampled on the device, without any synchronization with the host.

    p_i ~ exp((logit_i - max) / temperature)     kept: the k likeliest, then the fewest with total probability >= top_p,
                                                 then those with p_i >= min_p * max p

No sorting: top-k and top-p keep every logit at or above some value v, the largest for which the number or probability of the
tokens at or above v reaches the target. v is found by bisecting the monotone bits of floats, two bits per pass: 8 passes over
16-bit logits, 16 over float32, none if the option is off. Tokens that tie with the last one kept are kept too.

A draw inverts the cumulative distribution at a random number from Philox (Salmon et al., SC'11), keyed by the sequence's seed
and position: the same in a replayed CUDA graph, in a batch and alone. One program handles one sequence; the logits of a large
vocabulary stay in the L2 cache between passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...errors import ArgumentError
from . import launch as L

_BLOCK: Final = 4096
"""Logits per step; more would not fit in registers."""


@dataclass(frozen=True)
class Draws:
    """Sampling options with one element per sequence, on the logits' device."""

    temperature: Tensor
    """float32; 0: the most likely token (the first one of a tie)."""
    top_k: Tensor
    """int32; 0: all."""
    top_p: Tensor
    """float32; 1: all."""
    min_p: Tensor
    """float32; 0: all."""
    seed: Tensor
    """int64, of which the lower 32 bits are used."""


@triton.jit
def _keys(x, BITS: tl.constexpr):
    """Floats to non-negative integers that sort the same way."""
    if BITS == 16:
        bits = x.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
        return tl.where(bits >= 0x8000, 0xFFFF - bits, bits + 0x8000).to(tl.int64)
    else:
        bits = x.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
        return tl.where(bits >= 0x80000000, 0xFFFFFFFF - bits, bits + 0x80000000)


@triton.jit
def _weights(x, mask, peak, temperature):
    return tl.where(mask, tl.exp((x.to(tl.float32) - peak) / temperature), 0.0)


@triton.jit
def _above(row, V, peak, temperature, border, floor, COUNT: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """The number or total weight of tokens whose keys are at least ``border`` and ``floor``."""
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, V, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = tl.load(row + i, mask=i < V, other=float("-inf"))
        key = _keys(x, BITS)
        kept = (i < V) & (key >= border) & (key >= floor)
        total += kept.to(tl.float32) if COUNT else _weights(x, kept, peak, temperature)
    return tl.sum(total, 0)


@triton.jit
def _border(row, V, peak, temperature, floor, target, COUNT: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """The largest key, at least ``floor``, for which the tokens at or above it reach ``target``."""
    border = tl.full((), 0, tl.int64)
    for step in range(BITS // 2):
        quarter = tl.full((), 1, tl.int64) << (BITS - 2 - 2 * step)
        one = tl.zeros((BLOCK,), tl.float32)
        two = tl.zeros((BLOCK,), tl.float32)
        three = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, V, BLOCK):
            i = start + tl.arange(0, BLOCK)
            x = tl.load(row + i, mask=i < V, other=float("-inf"))
            key = _keys(x, BITS)
            kept = (i < V) & (key >= floor)
            size = kept.to(tl.float32) if COUNT else _weights(x, kept, peak, temperature)
            one += tl.where(key >= border + quarter, size, 0.0)
            two += tl.where(key >= border + 2 * quarter, size, 0.0)
            three += tl.where(key >= border + 3 * quarter, size, 0.0)
        reached = (tl.sum(one, 0) >= target).to(tl.int64) + (tl.sum(two, 0) >= target).to(tl.int64)
        border += quarter * (reached + (tl.sum(three, 0) >= target).to(tl.int64))
    return tl.maximum(border, floor)


@triton.jit
def sampling_kernel(
    logits, temperatures, top_ks, top_ps, min_ps, seeds, positions, tokens, V, stride,
    BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One sequence."""
    sequence = tl.program_id(0).to(tl.int64)
    row = logits + sequence * stride
    temperature = tl.load(temperatures + sequence)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    where = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, V, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = tl.load(row + i, mask=i < V, other=float("-inf")).to(tl.float32)
        higher = x > best
        best = tl.where(higher, x, best)
        where = tl.where(higher, i, where)
    peak = tl.max(best, 0)
    token = tl.min(tl.where(best == peak, where, V - 1), 0)
    if temperature > 0:
        floor = tl.full((), 0, tl.int64)
        k = tl.load(top_ks + sequence)
        if (k > 0) & (k < V):
            floor = _border(row, V, peak, temperature, floor, k.to(tl.float32), True, BITS, BLOCK)
        p = tl.load(top_ps + sequence)
        if p < 1.0:
            target = p * _above(row, V, peak, temperature, floor, floor, False, BITS, BLOCK)
            floor = _border(row, V, peak, temperature, floor, target, False, BITS, BLOCK)
        least = tl.load(min_ps + sequence)
        total = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, V, BLOCK):
            i = start + tl.arange(0, BLOCK)
            x = tl.load(row + i, mask=i < V, other=float("-inf"))
            w = _weights(x, (i < V) & (_keys(x, BITS) >= floor), peak, temperature)
            total += tl.where(w >= least, w, 0.0)
        u = tl.rand(
            tl.load(seeds + sequence).to(tl.int32), tl.load(positions + sequence).to(tl.int32)
        )
        target = u * tl.sum(total, 0)
        before = tl.full((), 0.0, tl.float32)
        found = tl.full((), 0x7FFFFFFF, tl.int32)
        last = tl.full((), 0, tl.int32)
        for start in range(0, V, BLOCK):
            i = start + tl.arange(0, BLOCK)
            x = tl.load(row + i, mask=i < V, other=float("-inf"))
            w = _weights(x, (i < V) & (_keys(x, BITS) >= floor), peak, temperature)
            w = tl.where(w >= least, w, 0.0)
            here = (before + tl.cumsum(w, 0) > target) & (w > 0.0)
            found = tl.minimum(found, tl.min(tl.where(here, i, 0x7FFFFFFF), 0))
            last = tl.maximum(last, tl.max(tl.where(w > 0.0, i, 0), 0))
            before += tl.sum(w, 0)
        token = tl.minimum(found, last)  # by rounding, the target may exceed the sum
    tl.store(tokens + sequence, token.to(tl.int64))


def sample(logits: Tensor, draws: Draws, positions: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Sample the next token of each sequence.

    Args:
        logits: float ``[batch, vocab]``, last axis contiguous; no NaN.
        draws: the sampling options.
        positions: int32 or int64 ``[batch]``: determines the random number, together with the seed.
        out: int64 ``[batch]`` to fill.

    Returns:
        int64 ``[batch]``.

    Raises:
        ArgumentError: a shape, dtype or stride is invalid.
    """
    if logits.ndim != 2 or logits.stride(1) != 1 or logits.shape[1] == 0:
        raise ArgumentError("shape of logits", expected="[batch, vocab], last axis contiguous", found=list(logits.shape))  # fmt: skip
    if logits.dtype not in (*L.HALVES, torch.float32):
        raise ArgumentError("dtype of logits", expected="a float of 16 or 32 bits", found=logits.dtype)  # fmt: skip
    batch, vocab = logits.shape
    for name, tensor in (*vars(draws).items(), ("positions", positions)):
        if tensor.shape != (batch,):
            raise ArgumentError(f"shape of {name}", expected=[batch], found=list(tensor.shape))
    tokens = L.empty(batch, like=logits, dtype=torch.int64) if out is None else out
    L.launch(
        sampling_kernel, (batch,),
        logits, draws.temperature, draws.top_k, draws.top_p, draws.min_p, draws.seed, positions,
        tokens, vocab, logits.stride(0), BITS=8 * logits.element_size(),
        BLOCK=min(_BLOCK, L.power_of_two(vocab)),
        num_warps=8, num_stages=1,
    )  # fmt: skip
    return tokens
