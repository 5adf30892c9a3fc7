"""The two modes on a CPU around products of the int8 columns, which ``integer`` and ``widened`` form in their own way."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..crossovers import GATHERED_CHANNELS
from ..tokens import add_outliers, quantize_tokens, take_large, without_outliers
from ..weight import MixedWeight

Product = Callable[[Tensor, Tensor], Tensor]
"""``[tokens, in]`` and codes int8 ``[out, in]`` -> float32 ``[tokens, out]``, before the row scales."""


def w8a8(x: Tensor, weight: MixedWeight, *, int8: Product, int16: Product, exact: Product) -> Tensor:  # fmt: skip
    """float32 ``[tokens, in]`` -> float32 ``[tokens, out]``, without bias.

    Args:
        x: activations.
        weight: see there.
        int8: product of int8 activations.
        int16: of float32 ones, rounded no coarser than to 16 bits of the token's largest magnitude.
        exact: of float32 ones, rounded no coarser than float32.
    """
    small = without_outliers(x, weight)
    if weight.activation_bits == 16:
        return add_outliers(int16(small, weight.codes).mul_(weight.scale), x, weight)
    fallback = take_large(small, weight)
    codes, scale = quantize_tokens(small)
    y = int8(codes, weight.codes).mul_(scale).mul_(weight.scale)
    if fallback is not None:
        y[fallback.rows] += _fallback_products(fallback.values, weight, exact)
    return add_outliers(y, x, weight)


def w8a16(x: Tensor, weight: MixedWeight, *, exact: Product) -> Tensor:
    """As ``w8a8``, with float activations."""
    y = exact(without_outliers(x, weight), weight.codes).mul_(weight.scale)
    return add_outliers(y, x, weight)


def _fallback_products(values: Tensor, weight: MixedWeight, exact: Product) -> Tensor:
    """Products of what the outlier fallback took: with the dequantized columns of those channels alone, where they are few."""
    channels = (values != 0).any(dim=0).nonzero().flatten()
    if len(channels) * GATHERED_CHANNELS > weight.in_features:
        return exact(values, weight.codes).mul_(weight.scale)
    columns = weight.codes.index_select(1, channels).float().mul_(weight.scale[:, None])
    return values.index_select(1, channels) @ columns.t()
