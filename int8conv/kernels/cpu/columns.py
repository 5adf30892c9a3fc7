"""The two modes on a CPU, given products of the int8 columns, which ``integer`` and ``widened`` compute differently."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..crossovers import GATHERED_CHANNELS
from ..tokens import add_outliers, take_large, without_outliers
from ..weight import MixedWeight

Product = Callable[[Tensor, Tensor], Tensor]
"""float32 ``[tokens, in]`` and codes int8 ``[out, in]`` -> float32 ``[tokens, out]``, before the row scales."""


def w8a8(x: Tensor, weight: MixedWeight, *, int8: Product, int16: Product, exact: Product) -> Tensor:  # fmt: skip
    """float32 ``[tokens, in]`` -> float32 ``[tokens, out]``, without bias.

    Args:
        x: activations.
        weight: the weight.
        int8: product with activations that it rounds to int8.
        int16: product at least as exact as 16-bit integers scaled to the token's largest magnitude.
        exact: product at least as exact as float32.
    """
    small = without_outliers(x, weight)
    if weight.activation_bits == 16:
        return add_outliers(int16(small, weight.codes).mul_(weight.scale), x, weight)
    fallback = take_large(small, weight)
    y = int8(small, weight.codes).mul_(weight.scale)
    if fallback is not None:
        y[fallback.rows] += _fallback_products(fallback.values, weight, exact)
    return add_outliers(y, x, weight)


def w8a16(x: Tensor, weight: MixedWeight, *, exact: Product) -> Tensor:
    """Like ``w8a8``, but with one product for all activations outside the outlier columns."""
    y = exact(without_outliers(x, weight), weight.codes).mul_(weight.scale)
    return add_outliers(y, x, weight)


def _fallback_products(values: Tensor, weight: MixedWeight, exact: Product) -> Tensor:
    """Products of the values in the outlier fallback, using only the dequantized columns of their channels if those are few."""
    channels = (values != 0).any(dim=0).nonzero().flatten()
    if len(channels) * GATHERED_CHANNELS > weight.in_features:
        return exact(values, weight.codes).mul_(weight.scale)
    columns = weight.codes.index_select(1, channels).float().mul_(weight.scale[:, None])
    return values.index_select(1, channels) @ columns.t()
