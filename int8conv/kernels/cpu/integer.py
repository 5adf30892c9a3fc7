"""The mixed linear on a CPU with int8 dot products (VNNI), using ``torch._int_mm``, which is exact and reads the weight as stored.

- ``w8a8``: one int8 code per activation and one scale per token; for an input that keeps 16 bits, two digits (2^-15 of the token's largest magnitude).
- ``w8a16``: an activation becomes a 24-bit integer, ``x = step * (65536 d2 + 256 d1 + d0)`` with int8 digits, and the three
  digits are three rows of one multiplication. The step is 2^-23 of the token's largest magnitude: float32 precision on
  int8 units, with the memory traffic of int8.

Two operators are deliberately not used: ``_weight_int8pack_mm`` (rounds results to bfloat16; wrong if in % 8 != 0) and FBGEMM's
dynamic linear (one scale for all tokens; saturates).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ..tokens import largest_of_tokens, quantize_tokens
from ..weight import MixedWeight
from . import columns

_DIGIT = 256


def w8a8(x: Tensor, weight: MixedWeight) -> Tensor:
    """int8 activations: float32 ``[tokens, in]`` -> float32 ``[tokens, out]``, outlier columns included, without bias."""
    return columns.w8a8(x, weight, int8=_one_digit, int16=_two_digits, exact=_three_digits)


def w8a16(x: Tensor, weight: MixedWeight) -> Tensor:
    """float activations: float32 ``[tokens, in]`` -> float32 ``[tokens, out]``, outlier columns included, without bias."""
    return columns.w8a16(x, weight, exact=_three_digits)


def _int8_product(x: Tensor, codes: Tensor) -> Tensor:
    return torch._int_mm(x, codes.t()).float()


def _one_digit(x: Tensor, codes: Tensor) -> Tensor:
    activations, scale = quantize_tokens(x)
    return _int8_product(activations, codes).mul_(scale)


def _two_digits(x: Tensor, codes: Tensor) -> Tensor:
    return _by_digits(x, codes, 2)


def _three_digits(x: Tensor, codes: Tensor) -> Tensor:
    return _by_digits(x, codes, 3)


def _by_digits(x: Tensor, codes: Tensor, count: int) -> Tensor:
    """``x @ codes^T`` with integers of ``count`` int8 digits per activation.

    A token's largest magnitude becomes the digit 127 followed by zeros: exact in float32, and far enough below 127.5 that rounding
    the step cannot carry the upper digit to 128.
    """
    step = largest_of_tokens(x) / (127 * _DIGIT ** (count - 1))
    integers = (x / step.masked_fill(step == 0, 1.0)).round_().to(torch.int32)
    digits = []
    for _ in range(count - 1):
        digit = (integers + 128).remainder_(_DIGIT).sub_(128)
        digits.append(digit)
        integers = (integers - digit).div_(_DIGIT, rounding_mode="trunc")
    rows = torch.cat([*digits, integers]).to(torch.int8)
    *lower, y = _int8_product(rows, codes).chunk(count)
    for products in reversed(lower):
        y = y.mul_(_DIGIT).add_(products)
    return y.mul_(step)


@functools.cache
def available() -> bool:
    """Whether ``torch._int_mm`` is fast and exact on this CPU (without VNNI it is a plain loop, or saturates)."""
    supported = getattr(torch.cpu, "_is_vnni_supported", lambda: False)
    if not supported():
        return False
    extreme = torch.full((4, 256), 127, dtype=torch.int8)
    extreme[1::2] = -127
    exact = extreme.double() @ extreme.double().t()
    return bool((torch._int_mm(extreme, extreme.t()) == exact).all())
