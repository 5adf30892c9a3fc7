"""Outlier columns without running the model, from norm gains and weights alone. An estimate, and marked as one.

The output of a norm is roughly a unit normal vector times the norm's gains, so a channel with a gain far above the others is
an outlier. In an unknown family, every norm of the same block and width is taken as a possible predecessor. A column
whose weights are far larger than the others sets the row scales, and is worth 16 bits too.
"""

from __future__ import annotations

import re
from typing import Final

import numpy as np
import numpy.typing as npt

from ...formats.int8.names import OUTLIER_MULTIPLE
from ...formats.int8.outlier_cap import CAP_FRACTION, most_outliers
from ...formats.safetensors.dtypes import FLOAT_DTYPES
from ...formats.safetensors.stored import StoredTensor
from ...formats.source.checkpoint import Checkpoint
from ...formats.source.matrix import Matrix, MatrixReader, as_rows
from ..rounding.float16_bits import widen
from .norm_gains import offset_of
from .rule import FACTOR, OutlierChoice
from .selection import Group, Selection

RULE: Final = "data-free: norm gains and column magnitudes >= 4 * median"
_NORM: Final = re.compile(r"(norm\w*|ln|ln_\w+)\.weight$")
_BLOCK: Final = re.compile(r"^(.*?\.)?\d+\.")
_SAMPLE: Final = 1 << 18
"""Number of weights of a linear to look at, in its first rows."""
_SIGMAS: Final = 6.0


def choose_data_free(
    checkpoint: Checkpoint,
    selection: Selection,
    fraction: float = CAP_FRACTION,
    *,
    offset: float = 0.0,
) -> dict[str, OutlierChoice]:
    """The choice for every input, by the group's ``input``; ``offset`` is that of ``norm_gains``."""
    norms = [
        tensor for tensor in checkpoint.tensors.values()
        if len(tensor.shape) == 1 and tensor.dtype in FLOAT_DTYPES and _NORM.search(tensor.name)
    ]  # fmt: skip
    return {
        item.input: _choose(item, norms, fraction, offset)
        for item in selection.items
        if isinstance(item, Group)
    }


def _choose(
    group: Group, norms: list[StoredTensor], fraction: float, offset: float
) -> OutlierChoice:
    in_features = group.linears[0].weight.shape[1]
    columns = _relative(np.maximum.reduce([_column_sizes(x.weight) for x in group.linears]))
    block = _BLOCK.match(group.linears[0].path)
    gains = [
        np.abs(_values(as_rows(norm, _SAMPLE)) + np.float32(offset_of(norm.name, offset))).reshape(-1)
        for norm in norms
        if norm.shape == (in_features,) and block and norm.name.startswith(block[0])
    ]  # fmt: skip
    score = np.maximum.reduce([columns, *map(_relative, gains)])
    order = np.argsort(-score, kind="stable")
    wanted = int(np.count_nonzero(score >= FACTOR))
    wanted = min(
        -(-wanted // OUTLIER_MULTIPLE) * OUTLIER_MULTIPLE, most_outliers(in_features, fraction)
    )
    rest = order[wanted:]
    largest = max((float(gain[rest].max(initial=0)) for gain in gains), default=0.0)
    kept = np.sort(order[:wanted]).astype(np.int32)
    return OutlierChoice(kept, _SIGMAS * largest if 0 < largest < np.inf else None)


def _relative(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Values relative to their median; non-finite values are refused elsewhere, by name."""
    finite = np.where(np.isfinite(values), values, 0)
    median = np.median(finite)
    return finite / median if median else np.zeros_like(finite)


def _column_sizes(weight: Matrix) -> npt.NDArray[np.float32]:
    """Largest magnitude of each column over the first rows."""
    return np.asarray(np.abs(_values(weight)).max(axis=0, initial=0), np.float32)


def _values(matrix: Matrix) -> npt.NDArray[np.float32]:
    """The first rows in float32."""
    for _, bits in MatrixReader(matrix, _SAMPLE).blocks():
        values: npt.NDArray[np.float32] = widen(
            bits, matrix.dtype, np.empty(bits.shape, np.float32)
        )
        values[~np.isfinite(values)] = 0
        return values
    return np.zeros((0, matrix.shape[1]), np.float32)
