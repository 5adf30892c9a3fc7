"""Data for plots of a converted folder: channel magnitudes, expected errors of linears."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from ...formats.int8.folder import ConvertedFolder
from ...formats.int8.manifest import InputGroup
from ...formats.int8.stats import Stats, input_stats
from ...formats.safetensors.dtypes import widened
from ...formats.safetensors.stored import StoredTensor, read_array, read_rows

MOST_BINS: Final = 1024
"""Width of a map; in wider inputs, adjacent channels share a bin, which shows the largest."""
_BLOCK_ROWS: Final = 256


def outlier_map(
    groups: Sequence[InputGroup], converted: ConvertedFolder, stats: Stats | None
) -> npt.NDArray[np.float64]:
    """Magnitudes ``[inputs, channels]``; NaN if there is nothing to show."""
    values = np.full((len(groups), max(g.in_features for g in groups)), np.nan)
    for row, group in enumerate(groups):
        found = None if stats is None else input_stats(stats, group.linears[0])
        if found is not None:
            values[row, : group.in_features] = found.absmax
            continue
        for path in group.linears if group.outliers else ():
            linear = converted.linears[path]
            assert linear.outlier_index is not None and linear.outlier_weight is not None
            columns = read_array(linear.outlier_index)
            largest = _floats(linear.outlier_weight).max(axis=0)
            values[row, columns] = np.fmax(values[row, columns], largest)
    return values


def _floats(stored: StoredTensor) -> npt.NDArray[np.float32]:
    """Magnitudes of a 16-bit tensor."""
    return np.abs(widened(read_array(stored), stored.dtype))


def binned(values: npt.NDArray[np.float64], most: int = MOST_BINS) -> npt.NDArray[np.float64]:
    """The largest values of adjacent columns, so that at most ``most`` are left."""
    wide = -(-values.shape[1] // most)
    padded = np.full((values.shape[0], -(-values.shape[1] // wide) * wide), np.nan)
    padded[:, : values.shape[1]] = values
    parts = padded.reshape(values.shape[0], -1, wide)
    return np.asarray(np.fmax.reduce(parts, axis=2))


def expected_errors(converted: ConvertedFolder) -> dict[str, float]:
    """Expected relative RMS error of each linear, from the file alone.

    Rounding to codes adds uniform noise of ``scale^2 / 12`` per weight outside the outlier columns; the signal is the
    dequantized weight.
    """
    errors = {}
    for path, linear in converted.linears.items():
        scale = read_array(linear.scale).astype(np.float64)
        signal = 0.0
        for first in range(0, linear.out_features, _BLOCK_ROWS):
            last = min(first + _BLOCK_ROWS, linear.out_features)
            rows = read_rows(linear.weight, first, last)[:, :, 0].astype(np.float32)
            signal += float(
                np.einsum("ij,ij->i", rows, rows) @ scale[first : first + len(rows)] ** 2
            )
        columns = linear.in_features
        if linear.outlier_weight is not None:
            kept = _floats(linear.outlier_weight)
            signal += float(np.square(kept, dtype=np.float64).sum())
            columns -= kept.shape[1]
        noise = float((scale**2).sum()) / 12 * columns
        errors[path] = float(np.sqrt(noise / signal)) if signal else 0.0
    return errors
