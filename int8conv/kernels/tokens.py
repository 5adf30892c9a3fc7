"""Activations in W8A8 before the product: outlier columns removed, large values to the fallback, the rest to codes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .weight import MixedWeight


def without_outliers(x: Tensor, weight: MixedWeight) -> Tensor:
    """A copy of ``x`` ``[tokens, in]`` with zeros in outlier columns (the weight's codes are zero there, but they would set the scale)."""
    if weight.outlier_index is None:
        return x.clone()
    return x.index_fill(1, weight.outlier_index.long(), 0.0)


def add_outliers(y: Tensor, x: Tensor, weight: MixedWeight) -> Tensor:
    """Add the products of the outlier columns of float32 ``x`` ``[tokens, in]`` to ``y`` ``[tokens, out]`` in place."""
    if weight.outlier_index is None or weight.outlier_weight is None:
        return y
    outliers = x.index_select(1, weight.outlier_index)
    return y.addmm_(outliers, weight.outlier_weight.float().t())


@dataclass(frozen=True)
class FallbackValues:
    """The values that go to the outlier fallback."""

    rows: Tensor
    """Numbers of the affected tokens ``[r]``."""
    values: Tensor
    """Their values in the fallback, zero elsewhere: float32 ``[r, in]``."""


def take_large(x: Tensor, weight: MixedWeight) -> FallbackValues | None:
    """Move values at or above the threshold out of ``x`` ``[tokens, in]`` (modified in place); None if there are none."""
    if weight.threshold is None:
        return None
    rows = (largest_of_tokens(x).flatten() >= weight.threshold).nonzero().flatten()
    found = x[rows]
    large = found.abs() >= weight.threshold
    if weight.counter is not None:
        weight.counter.add(x.shape[0], large)
    if not len(rows):
        return None
    x[rows] = found.masked_fill(large, 0.0)
    return FallbackValues(rows, found.masked_fill(~large, 0.0))


def largest_of_tokens(x: Tensor) -> Tensor:
    """``[tokens, in]`` -> ``[tokens, 1]``."""
    return torch.maximum(x.amax(dim=1, keepdim=True), -x.amin(dim=1, keepdim=True))


def rounded_in_blocks(x: Tensor, block: int) -> Tensor:
    """What int8 codes stand for that have a scale per token and block of channels: float32 ``[tokens, in]``, as ``x``."""
    padded = F.pad(x, (0, -x.shape[1] % block))
    codes, scale = quantize_tokens(padded.reshape(padded.numel() // block, block))
    return (codes.float() * scale).view_as(padded)[:, : x.shape[1]]


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 codes and scale per token: float32 ``[tokens, in]`` -> int8 ``[tokens, in]``, float32 ``[tokens, 1]``."""
    scale = largest_of_tokens(x) / 127.0
    return (x / scale.masked_fill(scale == 0, 1.0)).round_().to(torch.int8), scale
