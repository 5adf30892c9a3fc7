# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
# ruff: noqa: N803
"""W8A16 for few tokens of a mixture of experts: each is multiplied by the weights of experts whose numbers are on the device.

    y_s = act(gate_e x) * (up_e x)   or   w_e x              for slot s, where e = chosen[s] and x is row s // each

``gemv`` for every slot: a program computes ``ROWS`` rows of one slot's expert. The experts' weights stay where they were
loaded; a table on the device has the offset of each tensor from a base tensor, so that the host need not know which experts a
step uses, and a CUDA graph can replay it. Two slots with the same expert read it twice, the second time from L2 if it fits: meant
for the tokens of a decoding step, not for prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...errors import ArgumentError
from ..weight import MixedWeight
from . import launch as L
from .configs import Config, choose
from .gemm import check_contiguous
from .gemv import combine, fits, rows_times_x, shape_of, words
from .primitives import narrow

_UNIT: Final = 16
"""Unit of offsets in bytes: what a thread loads at once, so that the compiler knows the alignment."""
_TENSORS: Final = ("codes", "scale", "outlier_index", "outlier_weight")


@dataclass(frozen=True)
class ExpertWeights:
    """The weights of one linear, or of gate and up, for all experts."""

    experts: tuple[MixedWeight, ...]
    first: MixedWeight
    """Base tensors of the offsets."""
    table: Tensor
    """int64 ``[experts, 5]``: offsets of ``_TENSORS`` in units of 16 bytes, and the number of outlier columns."""

    @classmethod
    def of(cls, experts: Sequence[MixedWeight]) -> ExpertWeights:
        """The table for experts of the same shape.

        Raises:
            ArgumentError: shapes or dtypes differ, or a tensor is not aligned to 16 bytes.
        """
        first = next((e for e in experts if e.outlier_weight is not None), experts[0])
        rows = []
        for expert in experts:
            check_contiguous(expert)
            if not fits(expert.in_features):
                raise ArgumentError("channels of an expert", expected="a multiple of 4", found=expert.in_features)  # fmt: skip
            if expert.codes.shape != first.codes.shape:
                raise ArgumentError("shape of an expert", expected=list(first.codes.shape), found=list(expert.codes.shape))  # fmt: skip
            k = 0 if expert.outlier_index is None else expert.outlier_index.shape[0]
            rows.append([*(_distance(expert, first, name) for name in _TENSORS), k])
        return cls(tuple(experts), first, torch.tensor(rows, device=first.codes.device))


def _distance(expert: MixedWeight, first: MixedWeight, name: str) -> int:
    tensor, base = getattr(expert, name), getattr(first, name)
    if tensor is None or tensor.numel() == 0:
        return 0
    if tensor.dtype != base.dtype:
        raise ArgumentError(f"dtype of {name}", expected=base.dtype, found=tensor.dtype)
    distance: int = tensor.data_ptr() - base.data_ptr()
    if distance % _UNIT:
        raise ArgumentError(f"address of {name}", expected=f"a multiple of {_UNIT}", found=distance)
    return distance // _UNIT


@triton.jit
def experts_kernel(
    x, words_x, codes_w, scale_w, index, outlier_w, chosen, table, out, N, K, each, x_stride,
    ACTIVATION: tl.constexpr, ROWS: tl.constexpr, SLICES: tl.constexpr, UNROLL: tl.constexpr, K_FITS: tl.constexpr,
):  # fmt: skip
    """The results of ``ROWS`` rows of slot ``program_id(1)``."""
    slot = tl.program_id(1).to(tl.int64)
    entry = table + tl.load(chosen + slot) * 5
    token = tl.program_id(1) // each
    codes = codes_w + tl.load(entry) * 4
    scale = scale_w + tl.load(entry + 1) * 4
    channels = index
    columns = outlier_w
    num_outliers = 0
    if index is not None:
        channels = index + tl.load(entry + 2) * 4
        columns = outlier_w + tl.load(entry + 3) * 8
        num_outliers = tl.load(entry + 4).to(tl.int32)
    gated: tl.constexpr = ACTIVATION != "none"
    results: tl.constexpr = ROWS // 2 if gated else ROWS
    first = tl.program_id(0) * results
    y = rows_times_x(
        x + token * x_stride, words_x + token * (x_stride // 2), codes, scale, channels, columns, None, first, N, 1, K, x_stride,
        num_outliers, None, None, None, 0.0, 0, gated, 8, ROWS, SLICES, UNROLL, K_FITS, "none", 1, False,
    )  # fmt: skip
    if gated:
        y = combine(y, ACTIVATION)
    n = first + tl.arange(0, results)
    only = (tl.arange(0, 8) == 0)[None, :] & (n < N)[:, None]
    where = tl.broadcast_to(n[:, None], (results, 8))
    tl.store(out + slot * N + where, narrow(y, out.dtype.element_ty), mask=only)


def chosen_experts(
    x: Tensor,
    weights: ExpertWeights,
    chosen: Tensor,
    *,
    activation: str = "none",
    config: Config | None = None,
) -> Tensor:
    """Tokens times the weights of the experts chosen for them.

    Args:
        x: 16-bit ``[rows, in]``, last axis contiguous.
        weights: ``out`` rows per expert; with an activation, ``[gate; up]`` with ``2 out`` rows.
        chosen: int64 ``[slots]``, a multiple of ``rows``: the expert of each slot; slots of the same row are adjacent.
        activation: "none", or the function applied to gate before multiplying by up.
        config: the launch configuration of ``gemv``; None: from the table.

    Returns:
        ``[slots, out]`` in the dtype of ``x``.

    Raises:
        ArgumentError: a shape or dtype is invalid.
    """
    first, (rows, slots) = weights.first, (x.shape[0], chosen.numel())
    L.check_rows("x", x, first.in_features)
    if slots % max(rows, 1) or chosen.dtype != torch.int64 or not chosen.is_contiguous():
        raise ArgumentError("chosen", expected=f"int64, a multiple of {rows}", found=f"{chosen.dtype}, {slots}")  # fmt: skip
    halves = 1 if activation == "none" else 2
    if first.out_features % halves:
        raise ArgumentError("rows of a gated weight", expected="even", found=first.out_features)
    out_features = first.out_features // halves
    y = L.empty(slots, out_features, like=x, dtype=x.dtype)
    config = config or choose("gemv", L.capability(x.device), out=first.out_features)
    has_outliers = first.outlier_weight is not None and first.outlier_weight.numel() > 0
    x, two = words(x)
    L.launch(
        experts_kernel, (L.cdiv(out_features, config["block_n"] // halves), slots),
        x, two, first.codes.view(torch.int32), first.scale,
        first.outlier_index if has_outliers else None,
        first.outlier_weight if has_outliers else None,
        chosen, weights.table, y, out_features, first.in_features, slots // max(rows, 1), x.stride(0),
        ACTIVATION=activation, **shape_of(config, first.in_features),
    )  # fmt: skip
    return y
