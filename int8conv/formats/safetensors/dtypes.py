"""Safetensors dtype names, their sizes, and their numpy representations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_NUMPY: Final[dict[str, type[np.generic]]] = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "F8_E5M2": np.uint8,
    "F8_E4M3": np.uint8,
    "F8_E8M0": np.uint8,
    "I16": np.int16,
    "U16": np.uint16,
    "F16": np.float16,
    "BF16": np.uint16,
    "I32": np.int32,
    "U32": np.uint32,
    "F32": np.float32,
    "I64": np.int64,
    "U64": np.uint64,
    "F64": np.float64,
    "C64": np.complex64,
}
"""Every dtype whose elements are whole bytes; unsigned bits for floats that numpy does not support."""

ITEM_BYTES: Final = {name: np.dtype(kind).itemsize for name, kind in _NUMPY.items()}
"""Bytes per element."""

FLOAT_DTYPES: Final = ("F16", "BF16", "F32", "F64")
"""The dtypes that a source weight may have; F64 is read as F32."""

FP8_DTYPES: Final = ("F8_E4M3", "F8_E5M2")
"""8-bit float dtypes of weights, which have separate scales."""

FOUR_BIT_DTYPES: Final = ("F4", "I4")
"""Dtypes of weights with two elements per byte and separate scales: E2M1 floats, integers. In files they have other dtypes
(``source.four_bit``)."""

SCALED_DTYPES: Final = (*FP8_DTYPES, *FOUR_BIT_DTYPES)
"""Dtypes of weights with separate scales."""

INFINITY_BITS: Final = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F800000}
"""The bits of infinity; those of a NaN's magnitude are larger, and have the same bits set."""


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """The little-endian numpy dtype for a safetensors dtype; unsigned bits for BF16 and 8-bit floats."""
    little: np.dtype[Any] = np.dtype(_NUMPY[dtype]).newbyteorder("<")
    return little


def byte_count(dtype: str, shape: Sequence[int]) -> int:
    """Size in bytes of a tensor of that dtype and shape."""
    return math.prod(shape) * ITEM_BYTES[dtype]


def widened(values: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.float32]:
    """Float32 values of an array in its ``numpy_dtype``, of any float dtype but 8-bit ones."""
    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)
