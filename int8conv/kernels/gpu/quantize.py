# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
# ruff: noqa: N803
"""The activation quantizer, including the preceding norm or activation function.

For each token and block of 128 channels (64 if the input is heavy-tailed), over values outside the stored outlier channels O:

    scale = max |x| / 127        codes = rint(x * (127 / max |x|))

Divisions are IEEE's and the product is rounded once, so that codes and scales equal the reference bit for bit. Codes are 0 in O,
whose values are output in 16 bits, gathered; they do not set a scale. A large value that calibration did not foresee coarsens the
block around it and nothing else, so there is no outlier fallback here. What it would have handled is counted all the same,
on the device: if a block's largest value is not below the threshold, one atomic addition per value that is not; one per such
token, and one per launch for the number of tokens.

One program handles one token, in one pass over it (two with a norm, three with LayerNorm). Magnitudes are compared as bit patterns,
where NaN is the largest, so a NaN makes its block's scale and thus the token's results NaN. Scales are stored with tokens contiguous, as the
GEMM reads those of a tile's rows for one block at a time.
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
from .primitives import product_codes
from .prologue import NO_PROLOGUE, Prologue, moments, value_at

SCALE_BLOCK: Final = 128
"""Number of channels that share a scale."""
HEAVY_BLOCK: Final = 64
"""The same for heavy-tailed inputs."""
_AT_ONCE: Final = 4096
"""Number of channels that a program has in registers."""


@dataclass(frozen=True)
class QuantizedTokens:
    """int8 activations with everything else that the GEMM needs."""

    codes: Tensor
    """int8 ``[tokens, in]``."""
    scale: Tensor
    """float32 ``[ceil(in / block), tokens]``."""
    outliers: Tensor | None
    """16-bit ``[tokens, k]``: the values in the stored outlier channels."""
    dtype: torch.dtype
    """Of the activations."""
    block: int = SCALE_BLOCK
    """Number of channels that share a scale."""


@triton.jit
def _quantize_block(
    value, i, kept, codes_row, scale_row, counts, threshold, tokens, start, channels, BLOCK: tl.constexpr, SCALE_BLOCK: tl.constexpr,
):  # fmt: skip
    """Store codes and scales of some channels of a token; 1 if a value is counted."""
    value = tl.where(kept, value, tl.zeros_like(value))
    dtype: tl.constexpr = value.dtype
    magnitude = value.to(tl.int16, bitcast=True).to(tl.int32) & 0x7FFF
    largest = tl.max(tl.reshape(magnitude, (BLOCK // SCALE_BLOCK, SCALE_BLOCK)), 1)
    peak = largest.to(tl.int16).to(dtype, bitcast=True).to(tl.float32)
    block = tl.arange(0, BLOCK // SCALE_BLOCK)
    inside = start + block * SCALE_BLOCK < channels
    tl.store(
        scale_row + (start // SCALE_BLOCK + block) * tokens, tl.div_rn(peak, 127.0), mask=inside
    )
    inverse = tl.div_rn(
        127.0, tl.maximum(peak, 7.52316384526264e-37)
    )  # 2^-120: finite for a peak of 0
    wide = tl.reshape(value.to(tl.float32), (BLOCK // SCALE_BLOCK, SCALE_BLOCK))
    code = product_codes(
        wide, tl.broadcast_to(inverse[:, None], (BLOCK // SCALE_BLOCK, SCALE_BLOCK))
    )
    tl.store(codes_row + i, tl.reshape(code, (BLOCK,)), mask=i < channels)
    taken = tl.full((), 0, tl.int32)
    if counts is not None:  # noqa: SIM102  (the one is decided by the compiler)
        if tl.max(tl.where(peak < threshold, 0, 1), 0) != 0:  # not below: NaN as well
            over = tl.abs(value.to(tl.float32)) >= threshold
            tl.atomic_add(counts + 2 + i, over.to(tl.int64), mask=over, sem="relaxed")
            taken = tl.max(over.to(tl.int32), 0)
    return taken


@triton.jit(do_not_specialize=["tokens"])
def quantize_kernel(
    x, times, weight, bias, is_outlier, index, half, codes, scale, outliers, counts,
    threshold, eps, tokens, channels, num_outliers, x_stride, times_stride, half_stride, codes_stride,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr, SCALE_BLOCK: tl.constexpr, FITS: tl.constexpr,
):  # fmt: skip
    """One token."""
    row = tl.program_id(0).to(tl.int64)
    x_row = x + row * x_stride
    times_row = None if times is None else times + row * times_stride
    mean, rstd = moments(x_row, eps, channels, NORM, BLOCK)
    taken = tl.full((), 0, tl.int32)
    for start in range(0, channels, BLOCK):
        i = start + tl.arange(0, BLOCK)
        mask = tl.full((BLOCK,), True, tl.int1) if FITS else i < channels
        value = value_at(x_row, times_row, weight, bias, i, mask, mean, rstd, NORM, ACTIVATION)
        if half is not None:
            tl.store(half + row * half_stride + i, value, mask=mask)
        if codes is not None:
            kept = mask
            if is_outlier is not None:
                kept = tl.load(is_outlier + i, mask=mask, other=1) == 0
            found = _quantize_block(
                value, i, kept, codes + row * codes_stride, scale + row, counts, threshold, tokens, start, channels, BLOCK, SCALE_BLOCK
            )  # fmt: skip
            taken = tl.maximum(taken, found)
    if counts is not None:
        if row == 0:
            tl.atomic_add(counts, tl.num_programs(0).to(tl.int64), sem="relaxed")
        if taken != 0:
            tl.atomic_add(counts + 1, taken.to(tl.int64), sem="relaxed")
    if index is not None:
        for start in range(0, num_outliers, 64):
            j = start + tl.arange(0, 64)
            mask = j < num_outliers
            i = tl.load(index + j, mask=mask, other=0)
            value = value_at(x_row, times_row, weight, bias, i, mask, mean, rstd, NORM, ACTIVATION)
            tl.store(outliers + row * num_outliers + j, value, mask=mask)


def _stride(x: Tensor | None) -> int:
    return 0 if x is None else x.stride(0)


def _channels_at_once(channels: int) -> int:
    """Channels per pass: the most that divide the row; padded to a power of two if that would be few."""
    most = min(max(L.power_of_two(channels), SCALE_BLOCK), _AT_ONCE)
    divisor = channels & -channels
    return min(divisor, most) if divisor >= most // 4 and divisor >= SCALE_BLOCK else most


def _run(
    x: Tensor,
    prologue: Prologue,
    half: Tensor | None,
    index: Tensor | None = None,
    is_outlier: Tensor | None = None,
    result: QuantizedTokens | None = None,
    threshold: float = 0.0,
    counts: Tensor | None = None,
) -> None:
    tokens, channels = x.shape
    block = _channels_at_once(channels)
    codes = None if result is None else result.codes
    L.launch(
        quantize_kernel, (tokens,),
        x, prologue.times, prologue.weight, prologue.bias, is_outlier, index, half, codes,
        None if result is None else result.scale,
        None if result is None else result.outliers, counts,
        threshold, prologue.eps, tokens, channels, 0 if index is None else index.shape[0],
        x.stride(0), _stride(prologue.times), _stride(half), _stride(codes),
        NORM=prologue.norm, ACTIVATION=prologue.activation, BLOCK=block,
        SCALE_BLOCK=SCALE_BLOCK if result is None else result.block, FITS=channels % block == 0, num_warps=max(1, block // 512), num_stages=1,
    )  # fmt: skip


def apply(x: Tensor, prologue: Prologue) -> Tensor:
    """The norm or activation function alone: 16-bit ``[tokens, channels]`` -> the same.

    Raises:
        ArgumentError: a shape, dtype or stride is invalid.
    """
    prologue.check(x)
    y = L.empty(*x.shape, like=x, dtype=x.dtype)
    _run(x, prologue, y)
    return y


def quantize(
    x: Tensor,
    prologue: Prologue = NO_PROLOGUE,
    *,
    index: Tensor | None = None,
    is_outlier: Tensor | None = None,
    threshold: float | None = None,
    counts: Tensor | None = None,
    block: int = SCALE_BLOCK,
) -> QuantizedTokens:
    """Quantize tokens to int8, each block of channels by its largest magnitude.

    Args:
        x: 16-bit ``[tokens, channels]``, last axis contiguous.
        prologue: norm or activation function to apply first.
        index: int32 ``[k]``, ascending: the stored outlier channels.
        is_outlier: int8 ``[channels]``: 1 in those channels; required with ``index``.
        threshold: magnitude from which values are counted; None: none are.
        counts: int64 ``[2 + channels]``, incremented if there is a threshold: ``FallbackCounter.counts``.
        block: number of channels that share a scale: 64 or 128.

    Raises:
        ArgumentError: a shape, dtype or stride is invalid.
    """
    prologue.check(x)
    if (index is None) != (is_outlier is None):
        raise ArgumentError("index and is_outlier", expected="both or neither")
    tokens, channels = x.shape
    k = 0 if index is None else index.shape[0]
    result = QuantizedTokens(
        codes=L.empty(tokens, channels, like=x, dtype=torch.int8),
        scale=L.empty(L.cdiv(channels, block), tokens, like=x, dtype=torch.float32),
        outliers=L.empty(tokens, k, like=x, dtype=x.dtype) if index is not None else None,
        dtype=x.dtype,
        block=block,
    )
    if threshold is None:
        counts = None
    _run(x, prologue, None, index, is_outlier, result, threshold or 0.0, counts)
    return result
