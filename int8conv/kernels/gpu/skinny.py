# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
# ruff: noqa: N803
"""W8A16 for more tokens than ``gemv`` is for (up to 64): an int8 weight times 16-bit activations on tensor cores.

    y = (x @ q_w^T) * s_w + x_O @ w_O^T + bias              then act(y_gate) * y_up if gated; then + residual

The weight is the tall operand, ``y^T = q_w @ x^T``: codes are copied to shared memory asynchronously, 16 bytes at a time, and
widened to 16 bits (exactly) in registers before the dot product. Row scales are applied after the sum, so nothing is rounded
before the end.

If there are too few row blocks to keep a GPU busy, K is split among ``SPLIT`` programs. Each writes its float32 sums to a
workspace; the last one to arrive (by an atomic counter per tile) adds all of them in the order of K, including its own, and
finishes the tile. The result does not depend on which one is last. That program also resets the counter to zero, so counters are
cleared only once, when allocated, and not between launches.
"""

from __future__ import annotations

from typing import Final

import triton
import triton.language as tl
from torch import Tensor

from ...errors import ArgumentError
from ..weight import MixedWeight
from . import launch as L
from .configs import Config, by_alignment, choose
from .gemm import check_contiguous
from .gemv import MOST_TOKENS, NORM_TOKENS, fits, gemv
from .primitives import activate, after_previous, dot16, halve_codes, narrow
from .prologue import NO_PROLOGUE, Prologue
from .workspace import take

MAX_TOKENS: Final = 64
"""Beyond this, W8A8 is faster on every GPU in the table."""


@triton.jit
def _sums(x, codes_w, m, n, first, last, K, x_stride,
          BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
          K_FITS: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """float32 ``[BLOCK_N, BLOCK_M]``: codes times x, summed over channels ``first`` to ``last``."""
    k = tl.arange(0, BLOCK_K)
    w_tile = codes_w + n[:, None] * K + (first + k)[None, :]
    x_tile = x + m[None, :] * x_stride + (first + k)[:, None]
    sums = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for start in tl.range(first, last, BLOCK_K, num_stages=STAGES):
        if K_FITS:
            w = tl.load(w_tile, eviction_policy="evict_first")
            values = tl.load(x_tile)
        else:
            inside = k < last - start
            w = tl.load(w_tile, mask=inside[None, :], other=0, eviction_policy="evict_first")
            values = tl.load(x_tile, mask=inside[:, None], other=0.0)
        sums = dot16(halve_codes(w, values.dtype), values, sums)
        w_tile += BLOCK_K
        x_tile += BLOCK_K
    return sums


@triton.jit
def _finish(y, x, scale_w, index, outlier_w, bias, m, n, x_stride, num_outliers):
    """Apply row scales, outlier columns and bias to sums ``[BLOCK_N, BLOCK_M]``."""
    y = y * tl.load(scale_w + n)[:, None]
    if index is not None:
        for start in tl.range(0, num_outliers, 16, num_stages=1):
            j = start + tl.arange(0, 16)
            inside = j < num_outliers
            channel = tl.load(index + j, mask=inside, other=0)
            values = tl.load(x + m[None, :] * x_stride + channel[:, None], mask=inside[:, None], other=0.0)  # fmt: skip
            w = tl.load(outlier_w + n[:, None] * num_outliers + j[None, :], mask=inside[None, :], other=0.0)  # fmt: skip
            y = dot16(w.to(values.dtype), values, y)
    if bias is not None:
        y += tl.load(bias + n).to(tl.float32)[:, None]
    return y


@triton.jit
def _gather_sums(partial, tile, half: tl.constexpr, HALVES: tl.constexpr, BLOCK_M: tl.constexpr,
                 BLOCK_N: tl.constexpr, SPLIT: tl.constexpr):  # fmt: skip
    """A tile's sums over all parts of K, added in the order of K."""
    i = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
    y = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for part in range(SPLIT):
        where = ((tile * SPLIT + part) * HALVES + half) * (BLOCK_N * BLOCK_M)
        y += tl.load(partial + where + i, cache_modifier=".cg")
    return y


@triton.jit(do_not_specialize=["M"])
def skinny_kernel(
    x, codes_w, scale_w, index, outlier_w, bias, residual, out, partial, arrived,
    M, N, K, num_outliers, x_stride, residual_stride, out_stride,
    ACTIVATION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr, K_FITS: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One part of K for one row block; the last part to arrive writes ``[M, BLOCK_N]`` results."""
    after_previous(PDL)
    tile = tl.program_id(0)
    part = tl.program_id(1)
    halves: tl.constexpr = 1 if ACTIVATION == "none" else 2
    row = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.arange(0, BLOCK_M)
    n = (row % N).to(tl.int64)
    m = (column % M).to(tl.int64)
    step = tl.cdiv(tl.cdiv(K, SPLIT), BLOCK_K) * BLOCK_K
    first = tl.minimum(part * step, K)
    last = tl.minimum(first + step, K)
    y = _sums(x, codes_w, m, n, first, last, K, x_stride, BLOCK_M, BLOCK_N, BLOCK_K, K_FITS, STAGES)
    up = y
    if halves == 2:
        up = _sums(x, codes_w, m, n + N, first, last, K, x_stride, BLOCK_M, BLOCK_N, BLOCK_K, K_FITS, STAGES)  # fmt: skip
    before = SPLIT - 1
    if SPLIT > 1:
        i = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
        where = (tile * SPLIT + part) * halves * (BLOCK_N * BLOCK_M)
        tl.store(partial + where + i, y)
        if halves == 2:
            tl.store(partial + where + BLOCK_N * BLOCK_M + i, up)
        tl.debug_barrier()  # all threads' sums are written before one of them counts
        before = tl.atomic_add(arrived + tile, 1, sem="acq_rel", scope="gpu")
    if before == SPLIT - 1:
        if SPLIT > 1:
            tl.debug_barrier()
            tl.store(arrived + tile, 0)
            y = _gather_sums(partial, tile, 0, halves, BLOCK_M, BLOCK_N, SPLIT)
            if halves == 2:
                up = _gather_sums(partial, tile, 1, halves, BLOCK_M, BLOCK_N, SPLIT)
        y = _finish(y, x, scale_w, index, outlier_w, bias, m, n, x_stride, num_outliers)
        if halves == 2:
            up = _finish(up, x, scale_w, index, outlier_w, bias, m, n + N, x_stride, num_outliers)
            y = activate(y, ACTIVATION) * up
        inside = (column < M)[None, :] & (row < N)[:, None]
        if residual is not None:
            y += tl.load(residual + m[None, :] * residual_stride + row[:, None], mask=inside, other=0.0).to(tl.float32)  # fmt: skip
        tl.store(out + m[None, :] * out_stride + row[:, None], narrow(y, out.dtype.element_ty), mask=inside)  # fmt: skip


def takes_norm(x: Tensor, prologue: Prologue) -> bool:
    """Whether ``w8a16`` applies it to so many tokens itself."""
    tokens, channels = x.shape
    return prologue.norm != "none" and prologue.activation == "none" and tokens <= min(NORM_TOKENS, MOST_TOKENS) and fits(channels)  # fmt: skip


def w8a16(
    x: Tensor,
    weight: MixedWeight,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    activation: str = "none",
    norm: Prologue = NO_PROLOGUE,
    config: Config | None = None,
) -> Tensor:
    """Few 16-bit tokens times an int8 weight with outlier columns.

    Args:
        x: 16-bit ``[tokens, in]``, at most ``MAX_TOKENS`` tokens, last axis contiguous.
        weight: ``out`` rows; with an activation, ``[gate; up]`` with ``2 out`` rows.
        bias: float, one value per row of the weight.
        residual: 16-bit ``[tokens, out]``, added before rounding.
        activation: "none", or the function applied to gate before multiplying by up.
        norm: of ``x``, to be applied first; only where ``takes_norm``.
        config: the launch configuration; None: from the table.

    Returns:
        ``[tokens, out]`` in the dtype of ``x``.

    Raises:
        ArgumentError: a shape or dtype is invalid.
    """
    L.check_rows("x", x, weight.in_features)
    check_contiguous(weight)
    tokens, channels = x.shape
    halves = 1 if activation == "none" else 2
    if weight.out_features % halves:
        raise ArgumentError("rows of a gated weight", expected="even", found=weight.out_features)
    if tokens > MAX_TOKENS:
        raise ArgumentError("tokens", expected=f"at most {MAX_TOKENS}", found=tokens)
    out_features = weight.out_features // halves
    if residual is not None:
        L.check_rows("residual", residual, out_features)
    if fits(channels) and (tokens <= MOST_TOKENS if config is None else "split" not in config):
        norm.check(x)
        return gemv(x, weight, bias, residual, activation=activation, norm=norm, config=config)
    if not norm.is_empty:
        raise ArgumentError("norm", expected="none", found=norm.norm)
    y = L.empty(tokens, out_features, like=x, dtype=x.dtype)
    kind = by_alignment("skinny", channels)
    config = config or choose(kind, L.capability(x.device), tokens=tokens, out=out_features)
    block_m = max(L.power_of_two(tokens), 16)
    block_n, block_k, split = config["block_n"], config["block_k"], config["split"]
    tiles = L.cdiv(out_features, block_n)
    partial, arrived = take(x.device, tiles * split * halves * block_n * block_m, tiles)
    k = 0 if weight.outlier_index is None else weight.outlier_index.shape[0]
    L.launch(
        skinny_kernel, (tiles, split),
        x, weight.codes, weight.scale, weight.outlier_index if k else None,
        weight.outlier_weight if k else None, bias, residual, y, partial, arrived,
        tokens, out_features, channels, k,
        x.stride(0), 0 if residual is None else residual.stride(0), y.stride(0),
        ACTIVATION=activation, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k,
        SPLIT=split, K_FITS=channels % block_k == 0, STAGES=config["num_stages"], PDL=L.overlaps(x.device),
        num_warps=config["num_warps"], num_stages=config["num_stages"],
    )  # fmt: skip
    return y
