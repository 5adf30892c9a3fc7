"""The mixed linear on a CPU.

Where the processor has int8 dot products (VNNI), both modes run on ``torch._int_mm``, which is exact and reads the
weight as it lies in the file:

- ``w8a8``: one int8 code for each activation.
- ``w8a16``: an activation becomes a 24-bit integer, ``x = step * (65536 d2 + 256 d1 + d0)`` with int8 digits, and the three
  digits are three rows of one multiplication. The step is 2^-23 of the token's largest magnitude: float32's precision, on
  int8 units, at the memory traffic of int8.

- an input at threshold 0.0 in ``w8a8``: two digits, 2^-15 of the token's largest magnitude.

Elsewhere the weight is widened to float32 a block at a time. Two operators are left out on purpose: ``_weight_int8pack_mm``
(rounds results to bfloat16; wrong when in % 8 != 0) and FBGEMM's dynamic linear (one scale for all tokens, saturates).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ..dense import linear_by_blocks
from ..tokens import (
    largest_of_tokens,
    quantize_tokens,
    take_large,
    without_outliers,
)
from ..weight import MixedWeight

_DIGIT = 256


def w8a8(x: Tensor, weight: MixedWeight) -> Tensor:
    """int8 activations: float32 ``[tokens, in]`` -> float32 ``[tokens, out]``, without outlier columns and bias."""
    small = without_outliers(x, weight)
    if weight.threshold == 0.0:
        return _multiply(small, weight, digits=2)
    fallback = take_large(small, weight)
    codes, scale = quantize_tokens(small)
    if has_int8_products():
        y = torch._int_mm(codes, weight.codes.t()).float()
    else:
        y = linear_by_blocks(codes.float(), weight.codes)
    y.mul_(scale).mul_(weight.scale)
    if fallback is not None:
        y[fallback.rows] += _fallback_products(fallback.values, weight)
    return y


def w8a16(x: Tensor, weight: MixedWeight) -> Tensor:
    """float activations: float32 ``[tokens, in]`` -> float32 ``[tokens, out]``, without outlier columns and bias."""
    return _multiply(without_outliers(x, weight), weight, digits=3)


def _multiply(x: Tensor, weight: MixedWeight, digits: int) -> Tensor:
    many = has_int8_products()
    y = _by_digits(x, weight.codes, digits) if many else linear_by_blocks(x, weight.codes)
    return y.mul_(weight.scale)


def _fallback_products(values: Tensor, weight: MixedWeight) -> Tensor:
    """Products of what the outlier fallback took: with the dequantized columns of those channels alone, where they are few."""
    channels = (values != 0).any(dim=0).nonzero().flatten()
    if len(channels) * _FEW_CHANNELS > weight.in_features:
        return _multiply(values, weight, digits=3)
    columns = weight.codes.index_select(1, channels).float().mul_(weight.scale[:, None])
    return values.index_select(1, channels) @ columns.t()


_FEW_CHANNELS = 8
"""Below one channel in so many, gathering columns costs less than three int8 products of the whole weight."""


def _by_digits(x: Tensor, codes: Tensor, count: int) -> Tensor:
    """``x @ codes^T`` by integers of so many int8 digits for each activation.

    A token's largest magnitude becomes 127 with zeros behind it: exact in float32, and so far below 127.5 that rounding the step
    cannot carry the upper digit to 128.
    """
    step = largest_of_tokens(x) / (127 * _DIGIT ** (count - 1))
    integers = (x / step.masked_fill(step == 0, 1.0)).round_().to(torch.int32)
    digits = []
    for _ in range(count - 1):
        digit = (integers + 128).remainder_(_DIGIT).sub_(128)
        digits.append(digit)
        integers = (integers - digit).div_(_DIGIT, rounding_mode="trunc")
    rows = torch.cat([*digits, integers]).to(torch.int8)
    *lower, y = torch._int_mm(rows, codes.t()).float().chunk(count)
    for products in reversed(lower):
        y = y.mul_(_DIGIT).add_(products)
    return y.mul_(step)


@functools.cache
def has_int8_products() -> bool:
    """Whether ``torch._int_mm`` is fast and exact here (without VNNI it is a plain loop, or saturates)."""
    supported = getattr(torch.cpu, "_is_vnni_supported", lambda: False)
    if not supported():
        return False
    extreme = torch.full((4, 256), 127, dtype=torch.int8)
    extreme[1::2] = -127
    exact = extreme.double() @ extreme.double().t()
    return bool((torch._int_mm(extreme, extreme.t()) == exact).all())
