"""The formula of ``dispatch``, written for readability: the reference for all other implementations and their tests."""

from __future__ import annotations

import torch
from torch import Tensor

from .tokens import add_outliers, rounded_in_blocks, take_large, without_outliers
from .weight import MixedWeight


def w8a8(x: Tensor, weight: MixedWeight, block: int | None = None) -> Tensor:
    """int8 activations: float32 ``[tokens, in]`` -> float32 ``[tokens, out]``, outlier columns included, without bias.

    A token has one scale, or one per ``block`` channels.
    """
    if weight.activation_bits == 16:
        return w8a16(x, weight)
    small = without_outliers(x, weight)
    fallback = take_large(small, weight)
    values = rounded_in_blocks(small, block or max(weight.in_features, 1))
    y = (values.double() @ weight.codes.double().t()).float() * weight.scale
    if fallback is not None:
        y[fallback.rows] += fallback.values @ dequantize(weight).t()
    return add_outliers(y, x, weight)


def w8a16(x: Tensor, weight: MixedWeight) -> Tensor:
    """float activations: float32 ``[tokens, in]`` -> float32 ``[tokens, out]``, outlier columns included, without bias."""
    return add_outliers(without_outliers(x, weight) @ dequantize(weight).t(), x, weight)


def dequantize(weight: MixedWeight) -> Tensor:
    """The int8 part of a weight in float32 ``[out, in]``; zero in outlier columns."""
    return weight.codes.to(torch.float32) * weight.scale[:, None]
