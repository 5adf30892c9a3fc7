"""16-bit floats as bits in numpy: widen, find the largest magnitude, round.

Works on bits because numpy has no bfloat16 and its float16 conversions are several times slower than the integer operations
below.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[Any]
"""uint16 (F16, BF16) or uint32 (F32)."""

MAGNITUDE: Final = {"F16": 0x7FFF, "BF16": 0x7FFF, "F32": 0x7FFFFFFF}
_REBIAS: Final = np.float32(2.0**112)
"""The exponent bias of float32 is 127, that of float16 is 15."""


def widen(bits: Bits, dtype: str, out: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The exact float32 values of finite ``bits``, into ``out`` of the same shape."""
    wide = out.view(np.uint32)
    if dtype == "F32":
        np.copyto(wide, bits)
    elif dtype == "BF16":
        np.copyto(wide, bits)
        np.left_shift(wide, 16, out=wide)
    else:
        signed = out.view(np.int32)
        np.copyto(signed, bits.view(np.int16))  # sign-extends into the upper half
        np.left_shift(wide, 13, out=wide)
        np.bitwise_and(wide, 0x8FFFE000, out=wide)
        np.multiply(out, _REBIAS, out=out)
    return out


def largest_magnitudes(bits: Bits, dtype: str, scratch: Bits) -> Bits:
    """The bits of each row's largest magnitude, NaN being the largest: ``[rows, n]`` -> ``[rows]``; ``scratch`` is like ``bits``."""
    if bits.shape[1] == 0:
        return np.zeros(bits.shape[0], bits.dtype)
    np.bitwise_and(bits, MAGNITUDE[dtype], out=scratch)
    largest: Bits = scratch.max(axis=1)  # magnitudes sort like their bits
    return largest


def round_to_half(values: npt.NDArray[np.float32], dtype: str) -> tuple[Bits, int]:
    """Round finite float32 to F16 or BF16, half to even; also returns how many values changed. Overflow gives infinity."""
    if dtype == "F16":
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
            changed = np.count_nonzero(half.astype(np.float32) != values)
        return half.view(np.uint16), int(changed)
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    changed = np.count_nonzero(bits & 0xFFFF)
    return rounded.astype(np.uint16), int(changed)
