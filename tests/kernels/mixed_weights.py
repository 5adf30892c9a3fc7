"""Random weights with extremes in them, what they stand for, and what a float32 product may differ from the truth by."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from int8conv.kernels.weight import MixedWeight

TOLERANCE = 2e-6
"""Largest error of float32 accumulation, relative to the sum of the products' magnitudes."""


def make_weight(
    out: int, in_features: int, k: int = 0, seed: int = 0, threshold: float | None = None, activation_bits: Literal[8, 16] = 8
) -> MixedWeight:  # fmt: skip
    """A random weight; row 0 has extreme codes, row 1 is zero."""
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(-127, 128, (out, in_features), dtype=torch.int8, generator=g)
    scale = torch.rand(out, generator=g) * 0.01
    codes[0] = 127
    if out > 1:
        codes[1], scale[1] = 0, 0.0
    index = columns = None
    if k:
        index = torch.randperm(in_features, generator=g)[:k].sort().values.to(torch.int32)
        codes[:, index.long()] = 0
        columns = (torch.randn(out, k, generator=g) * 0.5).half()
    return MixedWeight(codes, scale, index, columns, threshold, activation_bits=activation_bits)


def dense(weight: MixedWeight) -> Tensor:
    """The weight that it stands for, in float64."""
    full = weight.codes.double() * weight.scale.double()[:, None]
    if weight.outlier_index is not None and weight.outlier_weight is not None:
        full[:, weight.outlier_index.long()] = weight.outlier_weight.double()
    return full


def check(y: Tensor, truth: Tensor, x: Tensor, weight: MixedWeight) -> None:
    magnitude = x.double().abs() @ dense(weight).abs().t()
    assert ((y.double() - truth).abs() <= TOLERANCE * magnitude + 1e-30).all()
