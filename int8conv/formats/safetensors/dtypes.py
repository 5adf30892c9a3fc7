"""Safetensors dtype names, their sizes, and their numpy representations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

ITEM_BYTES: Final[dict[str, int]] = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "F8_E8M0": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
    "C64": 8,
}
"""Bytes per element, for every dtype whose elements are whole bytes."""

FLOAT_DTYPES: Final = ("F16", "BF16", "F32", "F64")
"""The dtypes that a source weight may have; F64 is read as F32."""

FP8_DTYPES: Final = ("F8_E4M3", "F8_E5M2")
"""8-bit float dtypes of weights, which have separate scales."""

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
"""Unsigned bits of floats that numpy does not support."""


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """The little-endian numpy dtype for a safetensors dtype; unsigned bits for BF16 and 8-bit floats."""
    little: np.dtype[Any] = np.dtype(_NUMPY[dtype]).newbyteorder("<")
    return little


def byte_count(dtype: str, shape: Sequence[int]) -> int:
    """Size in bytes of a tensor of that dtype and shape."""
    return math.prod(shape) * ITEM_BYTES[dtype]
