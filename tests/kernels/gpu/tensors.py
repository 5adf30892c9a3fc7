"""Random weights and activations with extremes in them, and what a kernel's result may differ from the truth by."""

from __future__ import annotations

import torch
from torch import Tensor

from int8conv.kernels.weight import MixedWeight

HALVES = [torch.float16, torch.bfloat16]
SUMMATION = 2e-6
"""Largest error of float32 accumulation, relative to the sum of the products' magnitudes (as for the other kernels)."""
HALF_STEP = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""Largest relative error of one rounding to 16 bits."""


def make_weight(
    out: int, channels: int, k: int = 0, *, threshold: float | None = None, dtype: torch.dtype = torch.float16,
    seed: int = 0,
) -> MixedWeight:  # fmt: skip
    """Row 0 has extreme codes, row 1 is zero."""
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(-127, 128, (out, channels), dtype=torch.int8, generator=g)
    scale = torch.rand(out, generator=g) * 0.01
    codes[0] = 127
    codes[1:2], scale[1:2] = 0, 0.0
    if not k:
        return MixedWeight(codes, scale, threshold=threshold)
    index = torch.randperm(channels, generator=g)[:k].sort().values.to(torch.int32)
    codes[:, index.long()] = 0
    columns = (torch.randn(out, k, generator=g) * 0.5).to(dtype)
    return MixedWeight(codes, scale, index, columns, threshold)


def make_tokens(tokens: int, channels: int, dtype: torch.dtype, *, large: float = 0.0, seed: int = 1) -> Tensor:  # fmt: skip
    """Normal values, a few of them ``large`` at random places; the second token is zero, if there are three."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, channels, generator=g)
    if large:
        x[torch.rand(tokens, channels, generator=g) < 0.01] = large
    if tokens > 2:
        x[1] = 0
    return x.to(dtype)


def dense(weight: MixedWeight) -> Tensor:
    """The weight that it stands for, float64."""
    full = weight.codes.double() * weight.scale.double()[:, None]
    if weight.outlier_index is not None and weight.outlier_weight is not None:
        full[:, weight.outlier_index.long()] = weight.outlier_weight.double()
    return full


def check(y: Tensor, truth: Tensor, magnitude: Tensor) -> None:
    """A 16-bit result against float64 truth; ``magnitude`` is the sum of the magnitudes of all terms."""
    assert y.isfinite().all()
    smallest = 2.0**-25 if y.dtype == torch.float16 else 0.0
    allowed = SUMMATION * magnitude + HALF_STEP[y.dtype] * truth.abs() + smallest
    excess = ((y.double() - truth).abs() - 1.001 * allowed).max().item()
    assert excess <= 0, f"{excess:.3g} above the tolerance"
