"""Quantization error, measured on a sample of rows during conversion: the exact figure would take a third of the time.

For a weight ``w`` and its dequantized value ``v``: SQNR = 10 log10(sum w^2 / sum (w - v)^2). ``inspect --against`` gives the
exact figure over all rows.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

ELEMENTS: Final = 1 << 19
"""Approximate size of a sample; smaller matrices are measured completely."""


class RowSample:
    """Every ``step``-th row of a matrix ``[rows, columns]``."""

    def __init__(self, rows: int, columns: int) -> None:
        self.step = max(1, rows * columns // ELEMENTS)
        self._signal = self._noise = self._largest = 0.0

    def quotients(self, wide: npt.NDArray[np.float32], first: int) -> npt.NDArray[np.float32]:
        """A copy of the sampled rows of a block that starts at row ``first``, before rounding."""
        return np.array(wide[-first % self.step :: self.step])

    def add(
        self,
        quotients: npt.NDArray[np.float32],
        rounded: npt.NDArray[np.float32] | npt.NDArray[np.int8],
        scale: npt.NDArray[np.float32],
        first: int,
    ) -> None:
        """Measure the sampled rows of a block, after rounding."""
        rows = slice(-first % self.step, None, self.step)
        weight = np.square(scale[rows].astype(np.float64))
        self._signal += float(weight @ np.einsum("ij,ij->i", quotients, quotients))
        quotients -= rounded[rows]
        self._noise += float(weight @ np.einsum("ij,ij->i", quotients, quotients))
        if quotients.size:
            largest = np.maximum(quotients.max(axis=1), -quotients.min(axis=1)) * scale[rows]
            self._largest = max(self._largest, float(largest.max()))

    def add_exact(self, values: npt.NDArray[np.float32], first: int) -> None:
        """Add outlier columns ``[rows, k]`` of a block, which are exact."""
        rows = values[-first % self.step :: self.step]
        self._signal += float(np.einsum("ij,ij->", rows, rows, dtype=np.float64))

    @property
    def sqnr_db(self) -> float | None:
        """None if nothing was lost."""
        return 10 * math.log10(self._signal / self._noise) if self._noise else None

    @property
    def max_error(self) -> float:
        """Largest ``|w - v|``."""
        return self._largest
