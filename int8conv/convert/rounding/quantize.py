"""Quantize a block of rows (SPEC.md section 1.1): the format's arithmetic in one place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...formats.safetensors.buffers import Buffers
from ...formats.safetensors.dtypes import INFINITY_BITS
from .float16_bits import Bits, largest_magnitudes, widen
from .sample import RowSample

Codes = npt.NDArray[np.int8]

SMALLEST_SCALE = np.float32(2.0**-126)


@dataclass(frozen=True)
class QuantizedRows:
    """One block; the arrays are the quantizer's buffers, valid until the next block."""

    codes: Codes
    """``[rows, in]``, zero in outlier columns."""
    scale: npt.NDArray[np.float32]
    """``[rows]``."""
    outliers: Bits
    """``[rows, k]``, the source's bits."""


class RowQuantizer:
    """Quantizes blocks of rows.

    Args:
        dtype: F16, BF16 or F32.
        columns: outlier columns, int ``[k]``.
        buffers: memory to work in; a block in float32 should fit a core's cache.
        sample: measures the quantization error.
        codes: int8 ``[out, in]``, codes of the whole matrix if they have been chosen already; None: the nearest ones.
    """

    def __init__(
        self,
        dtype: str,
        columns: npt.NDArray[np.int32],
        buffers: Buffers | None = None,
        sample: RowSample | None = None,
        codes: Codes | None = None,
    ) -> None:
        self.dtype = dtype
        self.columns = columns
        self._buffers = buffers or Buffers()
        self._sample = sample
        self._codes = codes

    def quantize(self, bits: Bits, first: int = 0) -> QuantizedRows:
        """Quantize ``bits`` ``[rows, in]``, which is overwritten; ``first`` is the number of its first row.

        Raises:
            NonFiniteRowError: a value outside or inside the outlier columns is NaN or infinite.
        """
        scratch = self._buffers.take("scratch", bits.shape, bits.dtype)
        largest = largest_magnitudes(bits, self.dtype, scratch)
        check_finite(largest, self.dtype)
        outliers = bits[:, self.columns]
        if len(self.columns):
            bits[:, self.columns] = 0
            largest = largest_magnitudes(bits, self.dtype, scratch)
        scale = np.empty(len(bits), np.float32)
        widen(largest, self.dtype, scale)
        np.divide(scale, np.float32(127), out=scale)
        np.maximum(scale, SMALLEST_SCALE, out=scale, where=largest > 0)
        wide = widen(bits, self.dtype, self._buffers.take("wide", bits.shape, np.float32))
        np.divide(wide, np.where(largest > 0, scale, np.float32(1))[:, None], out=wide)
        exact = self._sample.quotients(wide, first) if self._sample else None
        if self._codes is None:
            np.rint(wide, out=wide)
        else:
            wide[:] = self._codes[first : first + len(bits)]
        if self._sample and exact is not None:
            self._sample.add(exact, wide, scale, first)
        codes = self._buffers.take("codes", bits.shape, np.int8)
        np.copyto(codes, wide, casting="unsafe")  # within +-127, as scales cover every value
        return QuantizedRows(codes, scale, outliers)


class NonFiniteRowError(ValueError):
    """Internal: a NaN or infinity in ``row`` of the block; the caller knows file and tensor."""

    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.row = row


def check_finite(largest: Bits, dtype: str) -> None:
    """Raise NonFiniteRowError at the first row whose largest magnitude ``[rows]`` is NaN or infinite."""
    bad = largest >= INFINITY_BITS[dtype]
    if bad.any():
        raise NonFiniteRowError(int(bad.argmax()))
