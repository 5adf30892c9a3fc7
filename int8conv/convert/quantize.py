"""Quantise a block of rows (SPEC.md section 1.1); the arithmetic of the format, in one place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .halves import INFINITY, Bits, largest_magnitudes, widen

SMALLEST_SCALE = np.float32(2.0**-126)


@dataclass(frozen=True)
class QuantizedRows:
    """One block; arrays are the quantiser's buffers, valid until the next block."""

    codes: npt.NDArray[np.int8]
    """``[rows, in]``, zero in outlier columns."""
    scale: npt.NDArray[np.float32]
    """``[rows]``."""
    outliers: Bits
    """``[rows, k]``, the source's bits."""


class RowQuantizer:
    """Quantises blocks of at most ``max_rows`` rows through buffers that are allocated once.

    Args:
        dtype: F16, BF16 or F32.
        in_features: columns.
        columns: outlier columns, int ``[k]``.
        max_rows: rows a block; what a block needs in float32 should fit a core's cache.
    """

    def __init__(
        self, dtype: str, in_features: int, columns: npt.NDArray[np.int32], max_rows: int
    ) -> None:
        self.dtype = dtype
        self.columns = columns
        shape = (max_rows, in_features)
        self._scratch = np.empty(shape, np.uint32 if dtype == "F32" else np.uint16)
        self._wide = np.empty(shape, np.float32)
        self._codes = np.empty(shape, np.int8)

    def quantize(self, bits: Bits) -> QuantizedRows:
        """Quantise ``bits`` ``[rows, in]``, which is overwritten.

        Raises:
            NonFiniteRowError: a value outside or inside the outlier columns is NaN or infinite.
        """
        rows = len(bits)
        check_finite(bits, self.dtype, self._scratch[:rows])
        outliers = bits[:, self.columns]
        bits[:, self.columns] = 0
        largest = largest_magnitudes(bits, self.dtype, self._scratch[:rows])
        scale = np.empty(rows, np.float32)
        widen(largest, self.dtype, scale)
        np.divide(scale, np.float32(127), out=scale)
        np.maximum(scale, SMALLEST_SCALE, out=scale, where=largest > 0)
        wide = widen(bits, self.dtype, self._wide[:rows])
        np.divide(wide, np.where(largest > 0, scale, np.float32(1))[:, None], out=wide)
        np.rint(wide, out=wide)
        codes = self._codes[:rows]
        np.copyto(codes, wide, casting="unsafe")  # within 127: no row value passes its scale
        return QuantizedRows(codes, scale, outliers)


class NonFiniteRowError(ValueError):
    """Internal: a NaN or an infinity at ``row`` of the block; the caller knows file and tensor."""

    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.row = row


def check_finite(bits: Bits, dtype: str, scratch: Bits) -> None:
    """Raise NonFiniteRowError at the first row ``[rows, n]`` with a NaN or an infinity."""
    bad = largest_magnitudes(bits, dtype, scratch) >= INFINITY[dtype]
    if bad.any():
        raise NonFiniteRowError(int(bad.argmax()))
