# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
# ruff: noqa: N803
"""The activation quantizer, including the preceding norm or activation function.

For each token, over values outside the stored outlier channels O and below the threshold of the outlier fallback:

    scale = max |x| / 127        codes = rint(x / scale)

Both are IEEE divisions, so that codes and scales equal the reference bit for bit. Codes are 0 in O and for values in the
fallback. The values in O are output in 16 bits, gathered. One bit per token and block of 128 channels, 32 blocks per int32, marks
blocks with values in the fallback: no memory has to be cleared first, no atomics are needed, and the GEMM can combine the tokens
of any row block by OR. The values themselves stay in a 16-bit matrix of which the GEMM reads only the marked blocks: the input
or, after a norm or activation function, a matrix in which only the marked blocks are written. The fallback is counted on the
device: one atomic addition per value, and one per launch for the number of tokens.

One program processes one token and reads it two to four times, from the L1 cache except for the first time. The largest magnitude
is found by comparing bit patterns, where NaN is the largest, so a NaN makes the scale and thus the token's results NaN.
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
from .primitives import rint
from .prologue import NO_PROLOGUE, Prologue, moments, value_at

FALLBACK_BLOCK: Final = 128
"""Number of channels per bit of the outlier fallback."""
WORD_CHANNELS: Final = 32 * FALLBACK_BLOCK


@dataclass(frozen=True)
class QuantizedTokens:
    """int8 activations with everything else that the GEMM needs."""

    codes: Tensor
    """int8 ``[tokens, in]``."""
    scale: Tensor
    """float32 ``[tokens]``."""
    outliers: Tensor | None
    """16-bit ``[tokens, k]``: the values in the stored outlier channels."""
    fallback: Tensor | None
    """int32 ``[tokens, ceil(in / 4096)]``: bit b of word w marks the channels from 4096 w + 128 b on; None: no fallback."""
    exact: Tensor | None
    """16-bit ``[tokens, in]``: the values before quantization; defined only in marked blocks."""
    threshold: float = 0.0


@triton.jit
def _first_pass(
    x_row, times_row, weight, bias, is_outlier, half_row, fallback_row, counts,
    threshold, mean, rstd, channels, quantized: tl.constexpr,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The bits of the largest magnitude to quantize, and whether there are values in the fallback; stores marks and 16-bit values."""
    largest = tl.full((), 0, tl.int32)
    taken = tl.full((), 0, tl.int32)
    for start in range(0, channels, BLOCK):
        i = start + tl.arange(0, BLOCK)
        mask = i < channels
        value = value_at(x_row, times_row, weight, bias, i, mask, mean, rstd, NORM, ACTIVATION)
        if HALF == 1:
            tl.store(half_row + i, value, mask=mask)
        if quantized:
            kept = mask
            if is_outlier is not None:
                kept = mask & (tl.load(is_outlier + i, mask=mask, other=1) == 0)
            if fallback_row is not None:
                over = kept & (tl.abs(value.to(tl.float32)) >= threshold)
                blocks = tl.max(tl.reshape(over.to(tl.int32), (BLOCK // 128, 128)), 1)
                bits = blocks << tl.arange(0, BLOCK // 128)
                tl.store(fallback_row + start // (32 * 128), tl.sum(bits, 0))
                if HALF == 2:
                    marked = tl.broadcast_to(blocks[:, None], (BLOCK // 128, 128))
                    marked = tl.reshape(marked, (BLOCK,)) != 0
                    tl.store(half_row + i, value, mask=mask & marked)
                if counts is not None:
                    tl.atomic_add(counts + 2 + i, over.to(tl.int64), mask=over)
                    taken = tl.maximum(taken, tl.max(over.to(tl.int32), 0))
                kept = kept & (over == 0)
            magnitude = value.to(tl.int16, bitcast=True).to(tl.int32) & 0x7FFF
            largest = tl.maximum(largest, tl.max(tl.where(kept, magnitude, 0), 0))
    return largest, taken


@triton.jit
def _store_codes(
    x_row, times_row, weight, bias, is_outlier, codes_row, step, fallback, threshold, mean, rstd, channels,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``rint(x / step)`` where x is quantized, else 0."""
    for start in range(0, channels, BLOCK):
        i = start + tl.arange(0, BLOCK)
        mask = i < channels
        value = value_at(x_row, times_row, weight, bias, i, mask, mean, rstd, NORM, ACTIVATION)
        wide = value.to(tl.float32)
        kept = mask
        if is_outlier is not None:
            kept = mask & (tl.load(is_outlier + i, mask=mask, other=1) == 0)
        if fallback is not None:
            kept = kept & (tl.abs(wide) < threshold)
        code = rint(tl.div_rn(tl.where(kept, wide, 0.0), step + tl.zeros_like(wide)))
        tl.store(codes_row + i, code.to(tl.int8), mask=mask)


@triton.jit
def quantize_kernel(
    x, times, weight, bias, is_outlier, index, half, codes, scale, fallback, outliers, counts,
    threshold, eps, channels, num_outliers, x_stride, times_stride, half_stride, codes_stride,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One token. ``HALF``: 0 writes no 16-bit values, 1 all of them, 2 only those in marked blocks."""
    row = tl.program_id(0).to(tl.int64)
    x_row = x + row * x_stride
    dtype: tl.constexpr = x.dtype.element_ty
    quantized: tl.constexpr = codes is not None
    times_row = None if times is None else times + row * times_stride
    half_row = None if half is None else half + row * half_stride
    words = (channels + 32 * 128 - 1) // (32 * 128)
    fallback_row = None if fallback is None else fallback + row * words
    mean, rstd = moments(x_row, eps, channels, NORM, BLOCK)
    largest, taken = _first_pass(
        x_row, times_row, weight, bias, is_outlier, half_row, fallback_row, counts,
        threshold, mean, rstd, channels, quantized, NORM, ACTIVATION, HALF, BLOCK,
    )  # fmt: skip
    if counts is not None:
        if row == 0:
            tl.atomic_add(counts, tl.num_programs(0).to(tl.int64))
        if taken != 0:
            tl.atomic_add(counts + 1, taken.to(tl.int64))
    if quantized:
        peak = largest.to(tl.int16).to(dtype, bitcast=True).to(tl.float32)
        step = tl.div_rn(peak, 127.0)
        tl.store(scale + row, step)
        step = tl.where(step == 0.0, 1.0, step)
        _store_codes(
            x_row, times_row, weight, bias, is_outlier, codes + row * codes_stride, step, fallback,
            threshold, mean, rstd, channels, NORM, ACTIVATION, BLOCK,
        )  # fmt: skip
    if index is not None:
        for start in range(0, num_outliers, 64):
            j = start + tl.arange(0, 64)
            mask = j < num_outliers
            i = tl.load(index + j, mask=mask, other=0)
            value = value_at(x_row, times_row, weight, bias, i, mask, mean, rstd, NORM, ACTIVATION)
            tl.store(outliers + row * num_outliers + j, value, mask=mask)


def _stride(x: Tensor | None) -> int:
    return 0 if x is None else x.stride(0)


def _run(
    x: Tensor,
    prologue: Prologue,
    half: Tensor | None,
    which_half: int,
    index: Tensor | None = None,
    is_outlier: Tensor | None = None,
    result: QuantizedTokens | None = None,
    counts: Tensor | None = None,
) -> None:
    tokens, channels = x.shape
    block = min(max(L.power_of_two(channels), FALLBACK_BLOCK), WORD_CHANNELS)
    codes = None if result is None else result.codes
    L.launch(
        quantize_kernel, (tokens,),
        x, prologue.times, prologue.weight, prologue.bias, is_outlier, index, half, codes,
        None if result is None else result.scale,
        None if result is None else result.fallback,
        None if result is None else result.outliers, counts,
        0.0 if result is None else result.threshold, prologue.eps,
        channels, 0 if index is None else index.shape[0],
        x.stride(0), _stride(prologue.times), _stride(half), _stride(codes),
        NORM=prologue.norm, ACTIVATION=prologue.activation, HALF=which_half, BLOCK=block,
        num_warps=max(1, min(16, block // 256)), num_stages=1,
    )  # fmt: skip


def apply(x: Tensor, prologue: Prologue) -> Tensor:
    """The norm or activation function alone: 16-bit ``[tokens, channels]`` -> the same.

    Raises:
        ArgumentError: a shape, dtype or stride is invalid.
    """
    prologue.check(x)
    y = L.empty(*x.shape, like=x, dtype=x.dtype)
    _run(x, prologue, y, 1)
    return y


def quantize(
    x: Tensor,
    prologue: Prologue = NO_PROLOGUE,
    *,
    index: Tensor | None = None,
    is_outlier: Tensor | None = None,
    threshold: float | None = None,
    counts: Tensor | None = None,
) -> QuantizedTokens:
    """Quantize tokens to int8, each by its largest magnitude.

    Args:
        x: 16-bit ``[tokens, channels]``, last axis contiguous.
        prologue: norm or activation function to apply first.
        index: int32 ``[k]``, ascending: the stored outlier channels.
        is_outlier: int8 ``[channels]``: 1 in those channels; required with ``index``.
        threshold: magnitude from which a value goes to the outlier fallback; None: no fallback.
        counts: int64 ``[2 + channels]``, incremented if there is a fallback: ``FallbackCounter.counts``.

    Raises:
        ArgumentError: a shape, dtype or stride is invalid.
    """
    prologue.check(x)
    if (index is None) != (is_outlier is None):
        raise ArgumentError("index and is_outlier", expected="both or neither")
    tokens, channels = x.shape
    k = 0 if index is None else index.shape[0]
    fused = threshold is not None and not prologue.is_empty
    half = L.empty(tokens, channels, like=x, dtype=x.dtype) if fused else None
    result = QuantizedTokens(
        codes=L.empty(tokens, channels, like=x, dtype=torch.int8),
        scale=L.empty(tokens, like=x, dtype=torch.float32),
        outliers=L.empty(tokens, k, like=x, dtype=x.dtype) if index is not None else None,
        fallback=L.empty(tokens, L.cdiv(channels, WORD_CHANNELS), like=x, dtype=torch.int32)
        if threshold is not None
        else None,
        exact=half if fused else x if threshold is not None else None,
        threshold=threshold or 0.0,
    )
    _run(
        x, prologue, half, 2 if fused else 0, index, is_outlier, result,
        None if threshold is None else counts,
    )  # fmt: skip
    return result
