# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
# ruff: noqa: N803
"""W8A16 for one token: an int8 weight times a 16-bit vector, at the speed of memory.

    y = (q_w @ x) * s_w + w_O @ x_O + bias                  then act(y_gate) * y_up if gated; then + residual

Outlier columns of ``q_w`` are zero, so ``x`` needs no mask. One program computes ``BLOCK_N`` rows (of both parts of a gated
weight ``[gate; up]``) and iterates over K; a thread loads 16 codes in one instruction, widens them by bit manipulation
(``primitives``), and adds 16 products to one float32 sum. Tensor cores are not used: with one token 15 of their 16 rows would
idle, and float32 products of 16-bit values are exact. Rows are never split among programs, so the order of summation
depends only on the configuration.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..weight import MixedWeight
from . import launch as L
from .configs import Config, choose
from .primitives import activate, narrow, widen_codes


@triton.jit
def rows_times_x(x, codes_w, scale_w, index, outlier_w, bias, n, K, num_outliers,
                  BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, K_FITS: tl.constexpr):  # fmt: skip
    """float32 results for weight rows ``n``, including outlier columns and bias."""
    k = tl.arange(0, BLOCK_K)
    w_tile = codes_w + n[:, None] * K + k[None, :]
    sums = tl.zeros((BLOCK_N, BLOCK_K // 16), tl.float32)
    for start in range(0, K, BLOCK_K):
        if K_FITS:
            w = tl.load(w_tile, eviction_policy="evict_first")
            values = tl.load(x + start + k)
        else:
            inside = k < K - start
            w = tl.load(w_tile, mask=inside[None, :], other=0, eviction_policy="evict_first")
            values = tl.load(x + start + k, mask=inside, other=0.0)
        products = widen_codes(w) * values.to(tl.float32)[None, :]
        sums += tl.sum(tl.reshape(products, (BLOCK_N, BLOCK_K // 16, 16)), 2)
        w_tile += BLOCK_K
    y = tl.sum(sums, 1) * tl.load(scale_w + n)
    if index is not None:
        for start in range(0, num_outliers, 16):
            j = start + tl.arange(0, 16)
            inside = j < num_outliers
            values = tl.load(x + tl.load(index + j, mask=inside, other=0), mask=inside, other=0.0)
            w = tl.load(outlier_w + n[:, None] * num_outliers + j[None, :], mask=inside[None, :], other=0.0)  # fmt: skip
            y += tl.sum(w.to(tl.float32) * values.to(tl.float32)[None, :], 1)
    if bias is not None:
        y += tl.load(bias + n).to(tl.float32)
    return y


@triton.jit
def gemv_kernel(
    x, codes_w, scale_w, index, outlier_w, bias, residual, out, N, K, num_outliers,
    ACTIVATION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, K_FITS: tl.constexpr,
):  # fmt: skip
    """``BLOCK_N`` results; ``ACTIVATION``: "none", or the activation of a gated weight with 2 N rows."""
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    n = (row % N).to(tl.int64)
    y = rows_times_x(x, codes_w, scale_w, index, outlier_w, bias, n, K, num_outliers, BLOCK_N, BLOCK_K, K_FITS)  # fmt: skip
    dtype: tl.constexpr = out.dtype.element_ty
    if ACTIVATION != "none":
        up = rows_times_x(x, codes_w, scale_w, index, outlier_w, bias, n + N, K, num_outliers, BLOCK_N, BLOCK_K, K_FITS)  # fmt: skip
        y = activate(y, ACTIVATION) * up
    if residual is not None:
        y += tl.load(residual + n).to(tl.float32)
    tl.store(out + row, narrow(y, dtype), mask=row < N)


def gemv(
    x: Tensor,
    weight: MixedWeight,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    activation: str = "none",
    config: Config | None = None,
) -> Tensor:
    """One token times an int8 weight with outlier columns: 16-bit ``[1, in]`` -> ``[1, out]``.

    Arguments are checked by ``skinny.w8a16``, which takes the same ones and calls this for single tokens.
    """
    out_features = weight.out_features // (1 if activation == "none" else 2)
    y = L.empty(1, out_features, like=x, dtype=x.dtype)
    config = config or choose("gemv", L.capability(x.device), out=out_features)
    has_outliers = weight.outlier_index is not None and weight.outlier_index.shape[0] > 0
    L.launch(
        gemv_kernel, (L.cdiv(out_features, config["block_n"]),),
        x, weight.codes, weight.scale,
        weight.outlier_index if has_outliers else None,
        weight.outlier_weight if has_outliers else None,
        bias, residual, y, out_features, weight.in_features,
        weight.outlier_index.shape[0] if weight.outlier_index is not None else 0,
        ACTIVATION=activation, BLOCK_N=config["block_n"], BLOCK_K=config["block_k"],
        K_FITS=weight.in_features % config["block_k"] == 0,
        num_warps=config["num_warps"], num_stages=1,
    )  # fmt: skip
    return y
