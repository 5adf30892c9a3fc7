# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
# ruff: noqa: N803
"""The int8 matrix product of W8A8; outlier columns, outlier fallback, bias and residual are in its epilogue.

    y = ((q_x @ q_w^T) * s_x  +  fallback @ q_w^T) * s_w  +  x_O @ w_O^T  +  bias  +  residual

Products of int8 codes are summed exactly in int32 (``in`` is at most 133,152, so that no sum overflows); everything after that
is float32, rounded once. ``fallback`` are the activations in the outlier fallback: if any token of a row block has a marked
block of 128 channels, that block is multiplied again in 16 bits by the unscaled codes; row scales are applied afterwards. The
decision is made on the device from the quantizer's bits; if nothing is marked, it costs one int32 load per token and 4096
channels.

Layout: K is contiguous in both operands. A weight ``[out, in]`` as stored in the file is what int8 tensor cores need as their
second operand; ``[in, out]`` would have to pass through registers. Tiles are visited in groups of ``GROUP`` row blocks, so that
programs running at the same time share operands in the L2 cache. Row and column indices past the edge wrap around (their results
are never stored); K is masked if it is not a multiple of the tile.

Operand tiles are copied asynchronously by threads or (with ``tma`` in a configuration, Hopper and newer) by the tensor memory
accelerator from descriptors filled in by the host, which takes no registers for addresses and reads zeros past an edge.
"""

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ...errors import ArgumentError
from ..weight import MixedWeight
from . import launch as L
from .configs import Config, by_alignment, choose
from .primitives import dot16, halve_codes, narrow
from .quantize import QuantizedTokens

MAX_CHANNELS: Final = (2**31 - 1) // 127**2
"""Largest K: more products of 127 by 127 would overflow int32."""


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
def _add_fallback(
    y, exact, fallback, codes_w, m, n, K, exact_stride, threshold, BLOCK: tl.constexpr
):
    """``y + fallback @ codes^T`` over the blocks of 128 channels that are marked for any token."""
    words = (K + 32 * 128 - 1) // (32 * 128)
    for word in range(words):
        bits = tl.load(fallback + m * words + word)
        marked = tl.reduce_or(bits, 0)
        if marked != 0:
            for block in range(32):
                if ((marked >> block) & 1) != 0:
                    here = ((bits >> block) & 1) != 0
                    first = word * (32 * 128) + block * 128
                    for start in tl.range(0, 128, BLOCK, num_stages=1):
                        k = first + start + tl.arange(0, BLOCK)
                        wanted = here[:, None] & (k < K)[None, :]
                        x = tl.load(exact + m[:, None] * exact_stride + k[None, :], mask=wanted, other=0.0)  # fmt: skip
                        x = tl.where(tl.abs(x.to(tl.float32)) >= threshold, x, tl.zeros_like(x))
                        w = tl.load(codes_w + n[None, :] * K + k[:, None], mask=(k < K)[:, None], other=0)  # fmt: skip
                        y = dot16(x, halve_codes(w, x.dtype), y)
    return y


@triton.jit
def gemm_kernel(
    codes_x, scale_x, outliers, fallback, exact, codes_w, scale_w, outlier_w, bias, residual, out,
    tiles_x, tiles_w, threshold, M, N, K, num_outliers, exact_stride, residual_stride, out_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    STAGES: tl.constexpr, K_FITS: tl.constexpr, FALLBACK_K: tl.constexpr,
):  # fmt: skip
    """One tile of the result."""
    pid_m, pid_n = _tile(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP)
    row = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    column = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m = (row % M).to(tl.int64)
    n = (column % N).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    x_tile = codes_x + m[:, None] * K + k[None, :]
    w_tile = codes_w + n[None, :] * K + k[:, None]
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        if tiles_x is not None:
            x = tiles_x.load([pid_m * BLOCK_M, start])
            w = tiles_w.load([pid_n * BLOCK_N, start]).T
        elif K_FITS:
            x = tl.load(x_tile)
            w = tl.load(w_tile)
        else:
            x = tl.load(x_tile, mask=(k < K - start)[None, :], other=0)
            w = tl.load(w_tile, mask=(k < K - start)[:, None], other=0)
        sums = tl.dot(x, w, sums, out_dtype=tl.int32)
        if tiles_x is None:
            x_tile += BLOCK_K
            w_tile += BLOCK_K

    y = sums.to(tl.float32) * tl.load(scale_x + m)[:, None]
    if fallback is not None:
        y = _add_fallback(y, exact, fallback, codes_w, m, n, K, exact_stride, threshold, FALLBACK_K)
    y = y * tl.load(scale_w + n)[None, :]
    if outliers is not None:
        for start in tl.range(0, num_outliers, 16, num_stages=1):
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
        dtype: dtype of the result, 16-bit or float32; None: that of ``x``'s 16-bit values or of ``residual``, else float16.
        config: the launch configuration; None: from the table.

    Raises:
        ArgumentError: a shape or dtype is invalid.
    """
    tokens, channels = x.codes.shape
    out_features = weight.out_features
    if channels != weight.in_features:
        raise ArgumentError("channels of x", expected=weight.in_features, found=channels)
    if channels > MAX_CHANNELS:
        raise ArgumentError("channels", expected=f"at most {MAX_CHANNELS}", found=channels)
    k = 0 if weight.outlier_weight is None else weight.outlier_weight.shape[1]
    if (0 if x.outliers is None else x.outliers.shape[1]) != k:
        raise ArgumentError("outlier channels of x", expected=k)
    check_contiguous(weight)
    if residual is not None:
        L.check_rows("residual", residual, out_features)
    of = next((t.dtype for t in (x.exact, x.outliers, residual) if t is not None), torch.float16)
    y = L.empty(tokens, out_features, like=x.codes, dtype=dtype or of)
    kind = by_alignment("gemm", channels)
    config = config or choose(kind, L.capability(y.device), tokens=tokens, out=out_features)
    block_m, block_n, block_k = config["block_m"], config["block_n"], config["block_k"]
    tiles_x, tiles_w = _descriptors(x.codes, weight.codes, config) or (None, None)
    L.launch(
        gemm_kernel, (L.cdiv(tokens, block_m) * L.cdiv(out_features, block_n),),
        x.codes, x.scale, x.outliers if k else None, x.fallback, x.exact,
        weight.codes, weight.scale, weight.outlier_weight if k else None, bias, residual, y, tiles_x, tiles_w,
        x.threshold, tokens, out_features, channels, k,
        0 if x.exact is None else x.exact.stride(0),
        0 if residual is None else residual.stride(0), y.stride(0),
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, GROUP=config["group"],
        STAGES=config["num_stages"], K_FITS=channels % block_k == 0, FALLBACK_K=config["fallback_k"],
        num_warps=config["num_warps"], num_stages=config["num_stages"],
    )  # fmt: skip
    return y


def _descriptors(x: Tensor, w: Tensor, config: Config) -> tuple[object, object] | None:
    """Descriptors for the tensor memory accelerator, if the configuration requests it and rows and bases are aligned to 16 bytes."""
    aligned = x.shape[1] % 16 == x.data_ptr() % 16 == w.data_ptr() % 16 == 0
    if not config.get("tma") or not aligned or 0 in (len(x), len(w)):
        return None
    return (
        TensorDescriptor.from_tensor(x, [config["block_m"], config["block_k"]]),
        TensorDescriptor.from_tensor(w, [config["block_n"], config["block_k"]]),
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
