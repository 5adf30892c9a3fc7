"""The mixed linear on a CPU with products of 16-bit integers: many tokens on a processor that lacks int8 dot products.

Activations are rounded to 16 bits per token and block of channels (``jit_gemm``). That is far closer than int8, and no slower there:
such a processor multiplies no more int8 than int16 numbers at once, but twice as many of them as float32.
"""

from __future__ import annotations

from torch import Tensor

from ..weight import MixedWeight
from . import columns, jit


def linear(x: Tensor, weight: MixedWeight) -> Tensor:
    """16-bit activations: float32 ``[tokens, in]`` -> float32 ``[tokens, out]``, outlier columns included, without bias."""
    return columns.w8a16(x, weight, exact=jit.int16)


def available(weight: MixedWeight) -> bool:
    """Whether compiled code can multiply by this weight here."""
    codes = weight.codes
    return codes.device.type == "cpu" and codes.is_contiguous() and jit.multiplies_int16()
