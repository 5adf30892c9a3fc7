"""The dequantized weight of a linear (SPEC.md section 1.1), a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ..safetensors.dtypes import widened
from ..safetensors.stored import read_array, read_rows
from .folder import QuantizedLinear


def dequantized_blocks(
    linear: QuantizedLinear, block_elements: int
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Yields the first row and the values ``[rows, in]`` of each block: code * scale, one multiplication; outlier columns as stored.

    Args:
        linear: of an opened folder.
        block_elements: largest number of elements per block (at least one row).

    Raises:
        NotFoundError, TruncatedFileError, FileChangedError: a file changed in the meantime.
    """
    scale = read_array(linear.scale)
    columns = read_array(linear.outlier_index) if linear.outlier_index else None
    rows = max(1, block_elements // max(linear.in_features, 1))
    for first in range(0, linear.out_features, rows):
        last = min(first + rows, linear.out_features)
        codes = read_rows(linear.weight, first, last).squeeze(-1)
        values = codes * scale[first:last, None]
        if linear.outlier_weight is not None:
            kept = read_rows(linear.outlier_weight, first, last)
            values[:, columns] = widened(kept, linear.outlier_weight.dtype)
        yield first, values
