# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
# ruff: noqa: N803
"""W8A16 for up to 16 tokens: an int8 weight times 16-bit activations, at the speed of memory.

    y = (q_w @ x) * s_w + w_O @ x_O + bias                  then act(y_gate) * y_up if gated; then + residual

Outlier columns of ``q_w`` are zero, so ``x`` needs no mask. A program computes ``ROWS`` rows of the weight, for a gated weight
``[gate; up]`` half of them gates and half the ups of the same results. Its warps (``SLICES``) share the channels: each multiplies its
slices of all rows on tensor cores, as one matrix of a batch, and their sums are added once, at the end. So the loop has no
barrier, and nothing in it passes through shared memory: a thread loads 16 codes at a time, and its channels are permuted
(equally in weight and x, which no sum notices) so that those 16 codes, widened in pairs, are its part of the tensor core's operand.
Two passes take turns in registers, one of them loaded across the end of the loop's body, where the assembler cannot put the loads
off until they are needed one by one.

The order of summation depends only on the configuration. Outlier columns are loaded before the loop and multiplied after it.

A norm of x may come first (``prologue``, for up to ``NORM_TOKENS`` tokens), bit for bit as ``quantize.apply`` would have it: each program
applies it to all tokens, while the first codes are on their way, writes them to memory, and goes on with what it has written.
"""

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..weight import MixedWeight
from . import launch as L
from .configs import Config, choose
from .primitives import activate, after_previous, dot16, four_codes, narrow, two_values
from .prologue import NO_PROLOGUE, Prologue, moments, value_at

MOST_TOKENS: Final = 16
"""Beyond this, loads of x outweigh those of the weight, and operands should be shared by a program's warps."""
NORM_TOKENS: Final = 4
"""Beyond this, every program's applying the norm to all tokens takes longer than a launch that does so once."""
_COPIES: Final = 16
"""Of x with its norm applied: so many that writing them is spread over L2."""

_PAIRS_FIRST = tl.constexpr(tuple(int(n) for n in triton.__version__.split(".")[:2]) >= (3, 7))
"""Which channels a thread has of a tensor core's operand: two pairs 8 apart, or (before 3.7) four adjacent ones, as codes are."""


@triton.jit
def _axis(size: tl.constexpr, axis: tl.constexpr):
    """0 to ``size`` along one of the axes of a pass's words: passes at once, rows, slices, 8 lanes, 16 words.

    Threads are laid along the last axes of what a load shares out, or, before 3.7, along the last and then the first ones.
    """
    x = tl.arange(0, size)
    if axis == 4:
        return x[None, None, None, None, :]
    elif axis == (0 if _PAIRS_FIRST else 3):
        return x[:, None, None, None, None]
    elif axis == (1 if _PAIRS_FIRST else 2):
        return x[None, :, None, None, None]
    elif axis == (2 if _PAIRS_FIRST else 1):
        return x[None, None, :, None, None]
    else:
        return x[None, None, None, :, None]


@triton.jit
def _outlier_weights(index, outlier_w, n, start, num_outliers, SLICES: tl.constexpr):
    """Outlier columns from ``start`` on, 16 per slice, ``[SLICES, ROWS, 16]``, and their channels, ``[SLICES, 16]``, which are 0 beyond the last."""
    j = start + tl.arange(0, SLICES)[:, None] * 16 + tl.arange(0, 16)[None, :]
    inside = j < num_outliers
    channel = tl.load(index + j, mask=inside, other=0)
    w = tl.load(outlier_w + n[None, :, None] * num_outliers + j[:, None, :], mask=inside[:, None, :], other=0.0)  # fmt: skip
    return w, channel


@triton.jit
def _outlier_values(x, channel, start, M, x_stride, num_outliers, SLICES: tl.constexpr, BLOCK_M: tl.constexpr):  # fmt: skip
    """Their values of x, ``[SLICES, 16, BLOCK_M]``."""
    j = start + tl.arange(0, SLICES)[:, None] * 16 + tl.arange(0, 16)[None, :]
    m = tl.arange(0, BLOCK_M)
    here = (j < num_outliers)[:, :, None] & (m < M)[None, None, :]
    return tl.load(x + m[None, None, :] * x_stride + channel[:, :, None], mask=here, other=0.0)


@triton.jit
def _codes(w_tile, w_words, left, K_FITS: tl.constexpr):
    """A pass's words of codes; ``left``: words from the pass's beginning to the row's end."""
    if K_FITS:
        w = tl.load(w_tile, eviction_policy="evict_first")
    else:
        w = tl.load(w_tile, mask=w_words < left, other=0, eviction_policy="evict_first")
    return w


@triton.jit
def _values(x_tile, x_words, left, K_FITS: tl.constexpr):
    """The same of x."""
    if K_FITS:
        values = tl.load(x_tile)
    else:
        values = tl.load(x_tile, mask=tl.broadcast_to(x_words < 2 * left, x_tile.shape), other=0)
    return values


@triton.jit
def _normed(raw, weight, bias, eps, x, M, K, raw_stride, NORM: tl.constexpr, BLOCK: tl.constexpr):
    """Write all tokens with the norm applied to ``x``, ``[M, K]``, for this program to read."""
    for m in range(M):
        row = raw + m * raw_stride
        mean, rstd = moments(row, eps, K, NORM, BLOCK)
        for start in range(0, K, BLOCK):
            i = start + tl.arange(0, BLOCK)
            value = value_at(row, None, weight, bias, i, i < K, mean, rstd, NORM, "none")
            tl.store(x + m * K + i, value, mask=i < K)
    tl.debug_barrier()  # of all threads, before one of them reads


@triton.jit
def _added(sums, w, values, dtype: tl.constexpr):
    """``sums`` plus a pass's products: both operands' words widened, in an order of channels that registers have already."""
    slices: tl.constexpr = sums.shape[0]
    rows: tl.constexpr = sums.shape[1]
    tokens: tl.constexpr = sums.shape[2]
    unroll: tl.constexpr = w.shape[0] if _PAIRS_FIRST else w.shape[3]
    if _PAIRS_FIRST:
        w = tl.reshape(four_codes(w, dtype), (unroll, rows // 8, slices, 8, 4, 4, 2, 2))
        values = tl.reshape(two_values(values, dtype), (unroll, tokens // 8, 2, slices, 8, 4, 2, 2, 2))  # fmt: skip
        w = tl.permute(w, (2, 1, 3, 0, 5, 6, 4, 7))
        values = tl.permute(values, (3, 0, 2, 6, 7, 5, 8, 1, 4))
    else:
        w = tl.reshape(four_codes(w, dtype), (8, slices, rows // 8, unroll, 4, 4, 2, 2))
        values = tl.reshape(two_values(values, dtype), (8, slices, tokens // 8, 2, unroll, 4, 2, 2, 2))  # fmt: skip
        w = tl.permute(w, (1, 2, 0, 3, 5, 4, 6, 7))
        values = tl.permute(values, (1, 4, 3, 6, 5, 7, 8, 2, 0))
    w = tl.reshape(w, (slices, rows, 64 * unroll))
    return dot16(w, tl.reshape(values, (slices, 64 * unroll, tokens)), sums)


@triton.jit
def rows_times_x(x, words_x, codes_w, scale_w, index, outlier_w, bias, first, N, M, K, x_stride, num_outliers,
                 raw, norm_weight, norm_bias, eps, raw_stride, GATED: tl.constexpr, BLOCK_M: tl.constexpr, ROWS: tl.constexpr,
                 SLICES: tl.constexpr, UNROLL: tl.constexpr, K_FITS: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """float32 results ``[ROWS, BLOCK_M]`` including outlier columns and bias; ``first``: of the results without gates.

    ``codes_w`` and ``words_x``: int32, four codes and two values each. With a ``NORM``, x is made of ``raw`` first. What is loaded of
    the weight before the loop is loaded before that, and before the launch that computes x has ended.
    """
    results: tl.constexpr = ROWS // 2 if GATED else ROWS
    r = tl.arange(0, ROWS)
    n = ((first + r % results) % N + (r // results) * N).to(tl.int64)
    scale = tl.load(scale_w + n)
    if index is not None:
        w_o, channel = _outlier_weights(index, outlier_w, n, 0, num_outliers, SLICES)

    unroll = _axis(UNROLL, 0)
    block = _axis(ROWS // 8, 1)  # 8 rows each
    part = _axis(BLOCK_M // 4, 1)  # half of the words of 8 tokens each
    slice_ = _axis(SLICES, 2)
    lane = _axis(8, 3)
    i = _axis(16, 4)
    row = block * 8 + lane
    row = ((first + row % results) % N + (row // results) * N).to(tl.int64)
    w_words = (slice_ * UNROLL + unroll) * 16 + i
    w_tile = codes_w + row * (K // 4) + w_words
    token = tl.minimum((part // 2) * 8 + lane, M - 1)  # columns of no token are never stored
    x_words = (slice_ * UNROLL + unroll) * 32 + (i // 4) * 8 + (part % 2) * 4 + i % 4
    x_tile = words_x + token * (x_stride // 2) + x_words
    sums = tl.zeros((SLICES, ROWS, BLOCK_M), tl.float32)
    dtype: tl.constexpr = x.dtype.element_ty
    step: tl.constexpr = 16 * SLICES * UNROLL
    left = K // 4
    w = _codes(w_tile, w_words, left, K_FITS)
    after_previous(PDL)
    if NORM != "none":
        _normed(raw, norm_weight, norm_bias, eps, x, M, K, raw_stride, NORM, BLOCK)
    values = _values(x_tile, x_words, left, K_FITS)
    if index is not None:
        x_o = _outlier_values(x, channel, 0, M, x_stride, num_outliers, SLICES, BLOCK_M)
    for start in tl.range(0, K // 4 - step, 2 * step, num_stages=1):
        left = K // 4 - start
        w_2 = _codes(w_tile + step, w_words, left - step, K_FITS)
        values_2 = _values(x_tile + 2 * step, x_words, left - step, K_FITS)
        sums = _added(sums, w, values, dtype)
        more = left > 2 * step  # if not, what has been loaded is loaded again, and not used
        w_tile += tl.where(more, 2 * step, 0)
        x_tile += tl.where(more, 4 * step, 0)
        left = tl.where(more, left - 2 * step, left)
        w = _codes(w_tile, w_words, left, K_FITS)
        values = _values(x_tile, x_words, left, K_FITS)
        sums = _added(sums, w_2, values_2, dtype)
    if tl.cdiv(K // 4, step) % 2 == 1:
        sums = _added(sums, w, values, dtype)
    y = tl.sum(sums, 0) * scale[:, None]
    if index is not None:
        extra = dot16(w_o.to(dtype), x_o, tl.zeros((SLICES, ROWS, BLOCK_M), tl.float32))
        for start in tl.range(16 * SLICES, num_outliers, 16 * SLICES, num_stages=1):
            w_o, channel = _outlier_weights(index, outlier_w, n, start, num_outliers, SLICES)
            x_o = _outlier_values(x, channel, start, M, x_stride, num_outliers, SLICES, BLOCK_M)
            extra = dot16(w_o.to(dtype), x_o, extra)
        y += tl.sum(extra, 0)
    if bias is not None:
        y += tl.load(bias + n).to(tl.float32)[:, None]
    return y


@triton.jit
def combine(y, ACTIVATION: tl.constexpr):
    """``act(gate) * up`` of rows ``[gates; ups]``."""
    halves = tl.reshape(y, (2, y.shape[0] // 2, y.shape[1]))
    gate, up = tl.split(tl.permute(halves, (1, 2, 0)))
    return activate(gate, ACTIVATION) * up


@triton.jit(do_not_specialize=["M"])
def gemv_kernel(
    x, words_x, codes_w, scale_w, index, outlier_w, bias, residual, out, raw, norm_weight, norm_bias,
    N, M, K, num_outliers, x_stride, residual_stride, out_stride, raw_stride, eps,
    ACTIVATION: tl.constexpr, BLOCK_M: tl.constexpr, ROWS: tl.constexpr, SLICES: tl.constexpr, UNROLL: tl.constexpr, K_FITS: tl.constexpr,
    NORM: tl.constexpr, COPIES: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The results of ``ROWS`` rows; ``ACTIVATION``: "none", or the activation of a gated weight with 2 N rows.

    With a ``NORM``, x is memory for its results, once for each of ``COPIES`` programs, which is rewritten by every further one: with
    the same values, of which each reads those that it has written itself or equal ones.
    """
    gated: tl.constexpr = ACTIVATION != "none"
    results: tl.constexpr = ROWS // 2 if gated else ROWS
    first = tl.program_id(0) * results
    if NORM != "none":
        own = tl.program_id(0) % COPIES
        x += own * M * K
        words_x += own * M * (K // 2)
    y = rows_times_x(
        x, words_x, codes_w, scale_w, index, outlier_w, bias, first, N, M, K, x_stride, num_outliers,
        raw, norm_weight, norm_bias, eps, raw_stride, gated, BLOCK_M, ROWS, SLICES, UNROLL, K_FITS, NORM, BLOCK, PDL,
    )  # fmt: skip
    if gated:
        y = combine(y, ACTIVATION)
    n = first + tl.arange(0, results)
    m = tl.arange(0, BLOCK_M)
    inside = (m < M)[None, :] & (n < N)[:, None]
    m = m.to(tl.int64)
    if residual is not None:
        y += tl.load(residual + m[None, :] * residual_stride + n[:, None], mask=inside, other=0.0).to(tl.float32)  # fmt: skip
    tl.store(out + m[None, :] * out_stride + n[:, None], narrow(y, out.dtype.element_ty), mask=inside)  # fmt: skip


def fits(channels: int) -> bool:
    """Whether the kernel reads rows of that many codes: as words of four."""
    return channels % 4 == 0


def words(x: Tensor) -> tuple[Tensor, Tensor]:
    """x, copied if rows begin in the middle of an int32, and the same as int32 of two values each, ``[tokens, in / 2]``."""
    if x.stride(0) % 2 or x.storage_offset() % 2 or x.stride(1) != 1:
        x = x.contiguous()
    return x, x.view(torch.int32)


def shape_of(config: Config, channels: int) -> dict[str, int | bool]:
    """The kernel's constants in a configuration: ``block_n`` rows, ``block_k`` channels per pass of ``num_warps`` warps.

    Passes are halved if the channels are then a multiple of them, which saves the masks.
    """
    slices, rows = config["num_warps"], config["block_n"]
    unrolls = [config["block_k"] // (64 * slices) >> i for i in range(3)]
    unroll = next((u for u in unrolls if u and channels % (64 * slices * u) == 0), unrolls[0])
    return {
        "ROWS": rows, "SLICES": slices, "UNROLL": unroll, "K_FITS": channels % (64 * slices * unroll) == 0,
        "num_warps": slices, "num_stages": 1,
    }  # fmt: skip


def gemv(
    x: Tensor,
    weight: MixedWeight,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    activation: str = "none",
    norm: Prologue = NO_PROLOGUE,
    config: Config | None = None,
) -> Tensor:
    """A few tokens times an int8 weight with outlier columns: 16-bit ``[tokens, in]`` -> ``[tokens, out]``.

    Arguments are checked by ``skinny.w8a16``, which takes the same ones and calls this for up to ``MOST_TOKENS`` tokens.
    """
    gated = activation != "none"
    out_features = weight.out_features // (2 if gated else 1)
    (tokens, channels), k = x.shape, 0 if weight.outlier_index is None else len(weight.outlier_index)  # fmt: skip
    y = L.empty(tokens, out_features, like=x, dtype=x.dtype)
    if not tokens:
        return y
    config = config or choose("gemv", L.capability(x.device), tokens=tokens, out=weight.out_features)  # fmt: skip
    raw, raw_stride = None, 0
    if not norm.is_empty:
        raw, raw_stride = x, x.stride(0)
        x = L.empty(_COPIES * tokens, channels, like=x, dtype=x.dtype)
    x, two = words(x)
    shape = shape_of(config, channels)
    L.launch(
        gemv_kernel, (L.cdiv(out_features, config["block_n"] // (2 if gated else 1)),),
        x, two, weight.codes.view(torch.int32), weight.scale,
        weight.outlier_index if k else None, weight.outlier_weight if k else None,
        bias, residual, y, raw, norm.weight, norm.bias, out_features, tokens, channels, k,
        x.stride(0), 0 if residual is None else residual.stride(0), y.stride(0), raw_stride, norm.eps,
        ACTIVATION=activation, BLOCK_M=8 if tokens <= 8 else 16, NORM=norm.norm, COPIES=_COPIES,
        BLOCK=min(L.power_of_two(channels), 1024 * config["num_warps"]), PDL=L.overlaps(x.device), **shape,
    )  # fmt: skip
    return y
