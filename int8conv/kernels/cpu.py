"""The mixed linear on a CPU.

Where the processor has int8 dot products (VNNI), both modes run on ``torch._int_mm``, which is exact and reads the
weight as it lies in the file:

- ``w8a8``: one int8 code for each activation.
- ``w8a16``: an activation becomes a 24-bit integer, ``x = step * (65536 d2 + 256 d1 + d0)`` with int8 digits, and the three
  digits are three rows of one multiplication. The step is 2^-23 of the token's largest magnitude: float32's precision, on
  int8 units, at the memory traffic of int8.

Elsewhere the weight is widened to float32 a block at a time. Two operators are left out on purpose: ``_weight_int8pack_mm``
(rounds results to bfloat16; wrong when in % 8 != 0) and FBGEMM's dynamic linear (one scale for all tokens, saturates).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .dense import linear_by_blocks
from .mixed import MixedWeight, quantize_tokens, split_by_threshold, without_outliers

_DIGIT = 256
_LARGEST = 127 * _DIGIT**2
"""What a token's largest magnitude becomes: exact in float32, and far enough below 127.5 * 65536 that rounding the step
cannot carry the upper digit to 128."""


def w8a8(x: Tensor, weight: MixedWeight) -> Tensor:
    """int8 activations: float32 ``[tokens, in]`` -> float32 ``[tokens, out]``, without outlier columns and bias."""
    small, caught = split_by_threshold(without_outliers(x, weight), weight)
    codes, scale = quantize_tokens(small)
    if has_int8_products():
        y = torch._int_mm(codes, weight.codes.t()).float()
    else:
        y = linear_by_blocks(codes.float(), weight.codes)
    y.mul_(scale).mul_(weight.scale)
    return y if caught is None else _add_caught(y, caught, weight)


def _add_caught(y: Tensor, caught: Tensor, weight: MixedWeight) -> Tensor:
    """Add what the safety net took: the dequantised columns of those channels alone, where they are few."""
    channels = (caught != 0).any(dim=0).nonzero().flatten()
    if len(channels) * _FEW_CHANNELS > weight.in_features:
        return y + w8a16(caught, weight)
    columns = weight.codes.index_select(1, channels).float().mul_(weight.scale[:, None])
    return y.addmm_(caught.index_select(1, channels), columns.t())


_FEW_CHANNELS = 8
"""Below one channel in so many, gathering columns costs less than three int8 products of the whole weight."""


def w8a16(x: Tensor, weight: MixedWeight) -> Tensor:
    """float activations: float32 ``[tokens, in]`` -> float32 ``[tokens, out]``, without outlier columns and bias."""
    x = without_outliers(x, weight)
    y = _by_digits(x, weight.codes) if has_int8_products() else linear_by_blocks(x, weight.codes)
    return y.mul_(weight.scale)


def _by_digits(x: Tensor, codes: Tensor) -> Tensor:
    step = x.abs().amax(dim=1, keepdim=True) / _LARGEST
    integers = (x / step.masked_fill(step == 0, 1.0)).round_().to(torch.int32)
    digits = []
    for _ in range(2):
        digit = (integers + 128).remainder_(_DIGIT).sub_(128)
        digits.append(digit)
        integers = (integers - digit).div_(_DIGIT, rounding_mode="trunc")
    rows = torch.cat([*digits, integers]).to(torch.int8)
    low, middle, high = torch._int_mm(rows, codes.t()).float().chunk(3)
    return high.mul_(_DIGIT).add_(middle).mul_(_DIGIT).add_(low).mul_(step)


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
