"""A tensor in a file: where its bytes are, and how to read them."""

from __future__ import annotations

from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from .checksum import running_checksum
from .dtypes import numpy_dtype
from .storage import WeightsFile

_BLOCK_BYTES: Final = 1 << 20


class StoredTensor(NamedTuple):
    """The location of a tensor's bytes."""

    name: str
    dtype: str
    """Safetensors name: F16, BF16, F32, I8, ..."""
    shape: tuple[int, ...]
    file: WeightsFile
    offset: int
    """Offset of the first byte in the file."""
    nbytes: int


class Stored(Protocol):
    """Something stored contiguously in a file."""

    @property
    def file(self) -> WeightsFile:
        """The file."""

    @property
    def offset(self) -> int:
        """Offset of the first byte."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""


def stored_checksum(stored: Stored) -> str:
    """Checksum of the bytes in the file, read block by block."""
    running, left, offset = running_checksum(), stored.nbytes, stored.offset
    buffer = memoryview(bytearray(min(_BLOCK_BYTES, max(left, 1))))
    with stored.file.open(offset + left) as reader:
        while left > 0:
            block = buffer[: min(left, len(buffer))]
            reader.read_into(block, offset)
            running.update(block)
            left, offset = left - len(block), offset + len(block)
    return running.hexdigest()


def read_array(tensor: StoredTensor) -> npt.NDArray[Any]:
    """A tensor's elements, read into memory; BF16 as uint16 bits."""
    return _read(tensor, 0, tensor.shape)


def read_rows(tensor: StoredTensor, first: int, last: int) -> npt.NDArray[Any]:
    """Like ``read_array``, but only for rows ``first`` (inclusive) to ``last`` (exclusive) of the first axis."""
    row_bytes = tensor.nbytes // max(tensor.shape[0], 1)
    return _read(tensor, first * row_bytes, (last - first, *tensor.shape[1:]))


def _read(tensor: StoredTensor, begin: int, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    array = np.empty(shape, numpy_dtype(tensor.dtype))
    with tensor.file.open() as reader:
        reader.read_into(array.reshape(-1).view(np.uint8).data, tensor.offset + begin)
    return array
