# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
# ruff: noqa: N803
"""The int8 matrix product of W8A8; outlier columns, bias and residual are in its epilogue.

    y = (sum over blocks b of channels: (q_x,b @ q_w,b^T) * s_x,b) * s_w  +  x_O @ w_O^T  +  bias  +  residual

Products of int8 codes are summed exactly in int32 within a block of 64 or 128 channels (below 2^21); everything after that is float32, rounded once.

Each block's sums are turned into float32 and added to the accumulator. Tensor cores whose operands and sums are registers (``mma.sync``)
start at the bits of 1.5 * 2^23 instead of zero: the int32 sums, read as a float, then are 1.5 * 2^23 + sum, which takes a subtraction at
the full rate instead of a conversion. Others start from zero without setting registers (``from_zero`` in a configuration). A tile's columns can be
multiplied in two parts, one after the other, so that only half of its int32 sums exist at a time (``parts``); the weight's row scale is
applied at the end.

Layout: K is contiguous in both operands. A weight ``[out, in]`` as stored in the file is what int8 tensor cores need as their
second operand; ``[in, out]`` would have to pass through registers. Tiles are visited in groups of ``GROUP`` row blocks, so that
programs running at the same time share operands in the L2 cache. Row and column indices past the edge wrap around (their results
are never stored); K is masked if it is not a multiple of the tile.

Operand tiles are copied asynchronously by threads or (with ``tma`` in a configuration, Hopper and newer) by the tensor memory
accelerator from descriptors filled in by the host, which takes no registers for addresses and reads zeros past an edge.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ...errors import ArgumentError
from ..weight import MixedWeight
from . import launch as L
from .configs import Config, by_alignment, choose
from .primitives import dot16, narrow
from .quantize import QuantizedTokens


@triton.jit
def _tile(pid, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """Row and column block of a program, in groups of ``GROUP`` row blocks."""
    blocks_m = tl.cdiv(M, BLOCK_M)
    in_group = GROUP * tl.cdiv(N, BLOCK_N)
    first = (pid // in_group) * GROUP
    rows = tl.minimum(blocks_m - first, GROUP)
    within = pid % in_group
    return first + within % rows, within // rows


@triton.jit
def _operand(tile, descriptor, row, k, start, K, K_FITS: tl.constexpr):
    """``[rows, BLOCK_K]`` codes."""
    if descriptor is not None:
        return descriptor.load([row, start])
    elif K_FITS:
        return tl.load(tile)
    else:
        return tl.load(tile, mask=(k < K - start)[None, :], other=0)


@triton.jit
def _add_block(y, x, w, scale, FROM_ZERO: tl.constexpr):
    """``y + (x @ w^T) * scale`` for codes of one block and the scale of each row."""
    if FROM_ZERO:
        sums = tl.dot(x, w.T, out_dtype=tl.int32).to(tl.float32)
    else:
        start = tl.full(y.shape, 0x4B400000, tl.int32)  # 1.5 * 2^23 as a float
        sums = tl.dot(x, w.T, start, out_dtype=tl.int32).to(tl.float32, bitcast=True) - 12582912.0
    return sums * scale[:, None] + y


@triton.jit
def _finish(
    y, outliers, scale_w, outlier_w, bias, residual, out, row, column, m, M, N, num_outliers,
    residual_stride, out_stride,
):  # fmt: skip
    """Apply row scales, outlier columns, bias and residual, and store the results of some columns of a tile."""
    n = (column % N).to(tl.int64)
    y = y * tl.load(scale_w + n)[None, :]
    if outliers is not None:
        for start in tl.range(0, num_outliers, 16, num_stages=2):
            j = start + tl.arange(0, 16)
            x = tl.load(outliers + m[:, None] * num_outliers + j[None, :], mask=(j < num_outliers)[None, :], other=0.0)  # fmt: skip
            w = tl.load(outlier_w + n[None, :] * num_outliers + j[:, None], mask=(j < num_outliers)[:, None], other=0.0)  # fmt: skip
            y = dot16(x, w.to(x.dtype), y)
    if bias is not None:
        y += tl.load(bias + n).to(tl.float32)[None, :]
    inside = (row < M)[:, None] & (column < N)[None, :]
    if residual is not None:
        y += tl.load(residual + m[:, None] * residual_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)  # fmt: skip
    tl.store(out + m[:, None] * out_stride + column[None, :], narrow(y, out.dtype.element_ty), mask=inside)  # fmt: skip


@triton.jit(do_not_specialize=["M"])
def gemm_kernel(
    codes_x, scale_x, outliers, codes_w, scale_w, outlier_w, bias, residual, out,
    tiles_x, tiles_w, M, N, K, num_outliers, residual_stride, out_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr, SCALE_BLOCK: tl.constexpr,
    STAGES: tl.constexpr, K_FITS: tl.constexpr, PARTS: tl.constexpr, FROM_ZERO: tl.constexpr,
):  # fmt: skip
    """One tile of the result."""
    pid_m, pid_n = _tile(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP)
    part: tl.constexpr = BLOCK_N // PARTS
    row = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    column = pid_n * BLOCK_N + tl.arange(0, part)
    m = (row % M).to(tl.int64)
    n = (column % N).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    x_tile = codes_x + m[:, None] * K + k[None, :]
    w_tile = codes_w + n[:, None] * K + k[None, :]
    y = tl.zeros((BLOCK_M, part), tl.float32)
    w_tile_2 = w_tile
    y_2 = y
    if PARTS == 2:
        n = ((column + part) % N).to(tl.int64)
        w_tile_2 = codes_w + n[:, None] * K + k[None, :]
    scale = tl.load(scale_x + m)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        x = _operand(x_tile, tiles_x, pid_m * BLOCK_M, k, start, K, K_FITS)
        w = _operand(w_tile, tiles_w, pid_n * BLOCK_N, k, start, K, K_FITS)
        following = tl.minimum(start + BLOCK_K, K - 1) // SCALE_BLOCK  # loaded ahead of its use
        scale_2 = tl.load(scale_x + following.to(tl.int64) * M + m)
        y = _add_block(y, x, w, scale, FROM_ZERO)
        if PARTS == 2:
            w = _operand(w_tile_2, tiles_w, pid_n * BLOCK_N + part, k, start, K, K_FITS)
            y_2 = _add_block(y_2, x, w, scale, FROM_ZERO)
        scale = scale_2
        if tiles_x is None:
            x_tile += BLOCK_K
            w_tile += BLOCK_K
            w_tile_2 += BLOCK_K
    _finish(y, outliers, scale_w, outlier_w, bias, residual, out, row, column, m, M, N, num_outliers, residual_stride, out_stride)  # fmt: skip
    if PARTS == 2:
        _finish(y_2, outliers, scale_w, outlier_w, bias, residual, out, row, column + part, m, M, N, num_outliers, residual_stride, out_stride)  # fmt: skip


def gemm(
    x: QuantizedTokens,
    weight: MixedWeight,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
    config: Config | None = None,
) -> Tensor:
    """Quantized tokens times an int8 weight with outlier columns: ``[tokens, out]``.

    Args:
        x: from ``quantize``, with the outlier channels of ``weight``.
        bias: float ``[out]``.
        residual: 16-bit ``[tokens, out]``, added before rounding.
        dtype: dtype of the result, 16-bit or float32; None: that of the activations.
        config: the launch configuration; None: from the table.

    Raises:
        ArgumentError: a shape or dtype is invalid.
    """
    tokens, channels = x.codes.shape
    out_features = weight.out_features
    if channels != weight.in_features:
        raise ArgumentError("channels of x", expected=weight.in_features, found=channels)
    k = 0 if weight.outlier_weight is None else weight.outlier_weight.shape[1]
    if (0 if x.outliers is None else x.outliers.shape[1]) != k:
        raise ArgumentError("outlier channels of x", expected=k)
    check_contiguous(weight)
    if residual is not None:
        L.check_rows("residual", residual, out_features)
    y = L.empty(tokens, out_features, like=x.codes, dtype=dtype or x.dtype)
    kind = by_alignment("gemm", channels)
    config = config or choose(kind, L.capability(y.device), tokens=tokens, out=out_features)
    block_m, block_n = config["block_m"], config["block_n"]
    block_k = min(config["block_k"], x.block)  # sums of a tile have one scale
    stages = config["num_stages"] * (config["block_k"] // block_k)
    tiles_x, tiles_w = _descriptors(x.codes, weight.codes, config, block_k) or (None, None)
    L.launch(
        gemm_kernel, (L.cdiv(tokens, block_m) * L.cdiv(out_features, block_n),),
        x.codes, x.scale, x.outliers if k else None,
        weight.codes, weight.scale, weight.outlier_weight if k else None, bias, residual, y, tiles_x, tiles_w,
        tokens, out_features, channels, k, 0 if residual is None else residual.stride(0), y.stride(0),
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, GROUP=config["group"], SCALE_BLOCK=x.block,
        STAGES=stages, K_FITS=channels % block_k == 0, PARTS=config.get("parts", 1),
        FROM_ZERO=bool(config.get("from_zero")), num_warps=config["num_warps"], num_stages=stages,
    )  # fmt: skip
    return y


def _descriptors(x: Tensor, w: Tensor, config: Config, block_k: int) -> tuple[object, object] | None:  # fmt: skip
    """Descriptors for the tensor memory accelerator, if the configuration requests it and rows and bases are aligned to 16 bytes."""
    aligned = x.shape[1] % 16 == x.data_ptr() % 16 == w.data_ptr() % 16 == 0
    if not config.get("tma") or not aligned or 0 in (len(x), len(w)):
        return None
    columns = config["block_n"] // config.get("parts", 1)
    return (
        TensorDescriptor.from_tensor(x, [config["block_m"], block_k]),
        TensorDescriptor.from_tensor(w, [columns, block_k]),
    )


def check_contiguous(weight: MixedWeight) -> None:
    """Check that a weight has the layout of the file, which the kernels read directly.

    Raises:
        ArgumentError: codes, scales or outlier columns have gaps or another dtype.
    """
    if weight.codes.dtype != torch.int8:
        raise ArgumentError("dtype of codes", expected="int8", found=weight.codes.dtype)
    for name in ("codes", "scale", "outlier_weight"):
        tensor = getattr(weight, name)
        if tensor is not None and not tensor.is_contiguous():
            raise ArgumentError(f"layout of {name}", expected="contiguous", found=tensor.stride())
