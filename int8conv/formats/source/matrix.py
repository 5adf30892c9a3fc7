"""A linear's weight as a matrix ``[out, in]``, however the checkpoint stores it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...errors import HalfOverflowError, UnsupportedDtypeError
from ..safetensors.buffers import Buffers
from ..safetensors.checksum import running_checksum
from ..safetensors.dtypes import FLOAT_DTYPES, FOUR_BIT_DTYPES, ITEM_BYTES, SCALED_DTYPES
from ..safetensors.storage import Reader, WeightsFile
from ..safetensors.stored import StoredTensor
from .checkpoint import Checkpoint
from .four_bit import pairs
from .fp8 import BlockScales, decoded, find_scales

Bits = npt.NDArray[Any]
"""uint16 (F16, BF16), uint32 (F32) or uint8 (the bytes of anything else)."""

_SHORT_ROW: Final = 1 << 12
_COMPARED: Final = 1 << 20
"""Number of bytes compared at a time."""
_PANEL_BYTES: Final = 8 << 20
"""Size of a panel of columns of a transposed matrix: narrower panels would mean many tiny reads."""


@dataclass(frozen=True)
class Matrix:
    """Where a weight is stored, and how to read it."""

    stored: StoredTensor
    scales: BlockScales | None = None
    """Scales of an FP8 or four-bit weight."""
    part: int | None = None
    """Index in a stack ``[parts, ., .]`` of experts."""
    transposed: bool = False
    """Stored ``[in, out]``."""

    @property
    def name(self) -> str:
        return self.stored.name if self.part is None else f"{self.stored.name}[{self.part}]"

    @property
    def file(self) -> WeightsFile:
        return self.stored.file

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        rows, columns = self.stored.shape[-2:]
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def dtype(self) -> str:
        """Dtype of the values, F16, BF16 or F32; weights with scales are F32 after scaling, and F64 is read as F32."""
        widened = self.scales is not None or self.stored.dtype == "F64"
        return "F32" if widened else self.stored.dtype

    @property
    def nbytes(self) -> int:
        """Stored size, without scales."""
        if self.stored.dtype in FOUR_BIT_DTYPES:
            return self.stored.nbytes
        return self.shape[0] * self.shape[1] * ITEM_BYTES[self.stored.dtype]

    @property
    def offset(self) -> int:
        """Offset of the first byte in the file."""
        return self.stored.offset + (self.part or 0) * self.nbytes


def find_matrix(
    checkpoint: Checkpoint,
    stored: StoredTensor,
    *,
    part: int | None = None,
    transposed: bool = False,
) -> Matrix:
    """The matrix of a stored tensor, with its scales if it is FP8 or has four bits.

    Raises:
        UnsupportedDtypeError: its dtype is not a supported float.
        CompanionError, ShapeError: an FP8 weight lacks matching scales or is not a matrix.
    """
    transposed = transposed or stored.name in checkpoint.transposed
    plain = part is None and not transposed
    if stored.dtype in SCALED_DTYPES and plain:
        return Matrix(stored, find_scales(checkpoint, stored))
    if stored.dtype not in FLOAT_DTYPES:
        kinds = FLOAT_DTYPES + (SCALED_DTYPES if plain else ())
        raise UnsupportedDtypeError(
            "unsupported dtype of a weight", file=stored.file, tensor=stored.name,
            expected=" or ".join(kinds), found=stored.dtype,
        )  # fmt: skip
    return Matrix(stored, None, part, transposed)


def as_rows(stored: StoredTensor, block_elements: int) -> Matrix:
    """A tensor of any shape as a matrix: rows along its first axis, or shorter ones if those would be too long."""
    rows = stored.shape[0] if stored.shape else 1
    columns = prod(stored.shape[1:])
    if rows * columns == 0:  # its other axes may have any length
        return Matrix(stored._replace(shape=(0, 0)))
    if columns > block_elements:
        total = rows * columns
        columns = min(total & -total, _SHORT_ROW)  # a power of two that divides it
        rows = total // columns
    return Matrix(stored._replace(shape=(rows, columns)))


def have_same_values(first: StoredTensor, second: StoredTensor) -> bool:
    """Whether two tensors are bit-identical; reads both up to the first block that differs.

    Raises:
        NotFoundError, TruncatedFileError: a file changed in the meantime.
    """
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    mine, yours = np.empty((2, _COMPARED), np.uint8)
    with (
        first.file.open(until=first.offset + first.nbytes) as one,
        second.file.open(until=second.offset + second.nbytes) as other,
    ):
        for begin in range(0, first.nbytes, _COMPARED):
            size = min(_COMPARED, first.nbytes - begin)
            one.read_into(mine[:size].data, first.offset + begin)
            other.read_into(yours[:size].data, second.offset + begin)
            if not np.array_equal(mine[:size], yours[:size]):
                return False
    return True


def as_bytes(stored: StoredTensor) -> Matrix:
    """A tensor of any dtype as a column of its bytes."""
    return Matrix(stored._replace(dtype="U8", shape=(stored.nbytes, 1)))


class MatrixReader:
    """Reads a matrix as blocks of complete rows and computes the checksum of the bytes.

    Args:
        matrix: what to read.
        block_elements: largest number of elements per block (at least one row).
        buffers: memory to read into.
    """

    def __init__(self, matrix: Matrix, block_elements: int, buffers: Buffers | None = None) -> None:
        self._matrix = matrix
        self._buffers = buffers or Buffers()
        self.rows, self.columns = matrix.shape
        self.rows_per_block = max(1, min(self.rows, block_elements // max(self.columns, 1)))
        self.dtype = np.dtype(f"u{ITEM_BYTES[matrix.dtype]}")
        self._wide = matrix.stored.dtype == "F64"
        self._item = np.dtype(np.float64) if self._wide else self.dtype
        self._sum = running_checksum()

    def blocks(self) -> Iterator[tuple[int, Bits]]:
        """Yields the first row and the bits ``[rows, in]`` of each block; the caller may overwrite them."""
        end = self._matrix.offset + self._matrix.nbytes
        with self._matrix.file.open(until=end) as reader:
            if self._matrix.scales is not None:
                yield from self._decoded(reader, self._matrix.scales)
            elif self._matrix.transposed:
                yield from self._transposed(reader)
            else:
                for first, stored in self._stored(reader, self._item, self.columns):
                    yield first, self._narrowed(stored, first) if self._wide else stored

    def checksum(self) -> str:
        """Checksum of the stored bytes, once all blocks have been read."""
        return self._sum.hexdigest()

    def _stored(
        self, reader: Reader, dtype: np.dtype[Any], columns: int
    ) -> Iterator[tuple[int, Bits]]:
        buffer = self._buffers.take("stored", (self.rows_per_block, columns), dtype)
        for first in range(0, self.rows, self.rows_per_block):
            bits = buffer[: min(self.rows_per_block, self.rows - first)]
            data = _bytes_of(bits)
            reader.read_into(data, self._matrix.offset + first * columns * bits.itemsize)
            self._sum.update(data)
            yield first, bits

    def _decoded(self, reader: Reader, scales: BlockScales) -> Iterator[tuple[int, Bits]]:
        dtype, columns = self._matrix.stored.dtype, self.columns
        if in_pairs := dtype in FOUR_BIT_DTYPES:
            columns //= 2
        table = pairs(dtype) if in_pairs else decoded(dtype)
        factors = scales.values()
        across = np.arange(self.columns) // scales.columns
        buffer = self._buffers.take("decoded", (self.rows_per_block, self.columns), np.float32)
        shaped = buffer.reshape(self.rows_per_block, columns, -1) if in_pairs else buffer
        for first, codes in self._stored(reader, np.dtype(np.uint8), columns):
            np.take(table, codes, axis=0, out=shaped[: len(codes)], mode="clip")
            values = buffer[: len(codes)]
            down = np.arange(first, first + len(codes)) // scales.rows
            wide = factors[down]
            with np.errstate(
                over="ignore", invalid="ignore"
            ):  # non-finite values are refused later, by name
                if self.columns == scales.shape[1] * scales.columns:
                    grouped = values.reshape(len(codes), scales.shape[1], scales.columns)
                    grouped *= wide[:, :, None]
                else:
                    values *= wide[:, across]
            yield first, values.view(np.uint32)

    def _transposed(self, reader: Reader) -> Iterator[tuple[int, Bits]]:
        """Panels of the stored columns, each transposed block by block."""
        item, inner, begin = self._item.itemsize, self.columns, self._matrix.offset
        wide = max(1, min(self.rows, _PANEL_BYTES // max(inner * item, 1)))
        for left in range(0, self.rows, wide):
            width = min(wide, self.rows - left)
            panel = self._buffers.take("stored", (inner, width), self._item)
            if width == self.rows:
                reader.read_into(_bytes_of(panel), begin)
            else:
                for row in range(inner):
                    place = begin + (row * self.rows + left) * item
                    reader.read_into(_bytes_of(panel[row]), place)
            for first in range(0, width, self.rows_per_block):
                turned = panel[:, first : first + self.rows_per_block].T
                if self._wide:
                    bits = self._narrowed(turned, left + first)
                else:
                    bits = self._buffers.take("turned", turned.shape, self.dtype)
                    np.copyto(bits, turned)
                yield left + first, bits
        self._sum_all(reader)

    def _narrowed(self, values: npt.NDArray[np.float64], first: int) -> Bits:
        """F64 rounded to F32."""
        narrow = self._buffers.take("narrowed", values.shape, np.float32)
        with np.errstate(over="ignore"):
            np.copyto(narrow, values, casting="same_kind")
        lost = np.isinf(narrow) & np.isfinite(values)
        if lost.any():
            row = first + int(lost.any(axis=1).argmax())
            raise HalfOverflowError(f"row {row} has a value that does not fit F32",
                                    file=self._matrix.file, tensor=self._matrix.name)  # fmt: skip
        return narrow.view(np.uint32)

    def _sum_all(self, reader: Reader) -> None:
        """Compute the checksum in file order, which panels do not follow."""
        begin, end = self._matrix.offset, self._matrix.offset + self._matrix.nbytes
        buffer = _bytes_of(self._buffers.take("stored", (min(1 << 20, end - begin),), np.uint8))
        for place in range(begin, end, len(buffer) or 1):
            part = buffer[: min(len(buffer), end - place)]
            reader.read_into(part, place)
            self._sum.update(part)


def _bytes_of(array: npt.NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
