"""Hold a converted folder against its source: how exact each linear is, and that all else is bit for bit the same.

For a weight ``w`` and what the folder stands for ``v``: SQNR = 10 log10(sum w^2 / sum (w - v)^2) in dB, over the whole
matrix. Both folders are read a block of rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import SourceMismatchError
from ..formats.checkpoint import StoredTensor
from ..formats.converted import ConvertedFolder, QuantizedLinear, read_array, read_rows
from ..formats.matrix import Matrix, MatrixReader, as_rows
from ..formats.names import BIAS, WEIGHT
from .halves import Bits, round_to_half, widen
from .selection import Kept, Selection

Progress = Callable[[int], None]
"""Called with the number of source bytes done since the last call."""

_BLOCK_ELEMENTS: Final = 1 << 18
_LARGEST_STEP: Final = 0.5 + 2.0**-17
"""Of a row scale: how far a dequantised weight may be from its source (SPEC.md section 1.1)."""


@dataclass(frozen=True)
class TensorQuality:
    """How well a converted linear stands for its source."""

    name: str
    sqnr_db: float | None
    """None where nothing was lost."""
    max_error: float
    """Largest ``|w - v|``."""
    outlier_share: float
    """Of the linear's bytes, those of its outlier columns."""


def compare(
    converted: ConvertedFolder, selection: Selection, progress: Progress = lambda nbytes: None
) -> list[TensorQuality]:
    """The quality of every quantised linear, in the order of the source's selection.

    Args:
        converted: the folder.
        selection: of the source, with the options that the folder's manifest has.
        progress: called as the work goes on.

    Raises:
        SourceMismatchError: the source is not the one that was converted; or a kept tensor or an outlier column is not
            the source's, or a weight is more than half a scale from it.
        MissingTensorError: the folder lacks a tensor.
    """
    qualities = []
    recorded = converted.manifest.source.get("tensors")
    sums: Mapping[str, Any] = recorded if isinstance(recorded, dict) else {}
    for item in selection.items:
        if isinstance(item, Kept):
            tensor = converted.checkpoint.tensor(item.name)
            _compare_kept(tensor, item.source, sums, progress)
            continue
        for x in item.linears:
            linear = converted.linears.get(x.path)
            if linear is None:
                raise SourceMismatchError("not quantised in the folder", file=converted.folder,
                                          tensor=f"{x.path}.{WEIGHT}")  # fmt: skip
            qualities.append(_compare_linear(linear, x.weight, sums, progress))
            if x.bias is not None:
                tensor = converted.checkpoint.tensor(f"{x.path}.{BIAS}")
                _compare_kept(tensor, x.bias, sums, progress)
    return qualities


def _compare_linear(
    linear: QuantizedLinear, source: Matrix, sums: Mapping[str, Any], progress: Progress
) -> TensorQuality:
    _check_shape(source, (linear.out_features, linear.in_features))
    scale = read_array(linear.scale).astype(np.float64)
    columns = read_array(linear.outlier_index) if linear.outlier_index else np.empty(0, np.int32)
    reader = MatrixReader(source, _BLOCK_ELEMENTS)
    signal = noise = largest = 0.0
    for first, bits in reader.blocks():
        rows = slice(first, first + len(bits))
        wanted = widen(bits, source.dtype, np.empty(bits.shape, np.float32)).astype(np.float64)
        error = (
            wanted - read_rows(linear.weight, rows.start, rows.stop)[:, :, 0] * scale[rows, None]
        )
        if linear.outlier_weight is not None:
            kept = read_rows(linear.outlier_weight, rows.start, rows.stop)
            _check_bits(source, bits[:, columns], linear.outlier_weight, kept, first)
            error[:, columns] = wanted[:, columns] - _values(kept, linear.outlier_weight.dtype)
        within = np.abs(error) <= scale[rows, None] * _LARGEST_STEP
        within[:, columns] = True
        if not within.all():
            row = first + int((~within).any(axis=1).argmax())
            raise _mismatch(linear.weight, row, "a weight within half a scale of the source")
        signal += float(np.square(wanted).sum())
        noise += float(np.square(error).sum())
        largest = max(largest, float(np.abs(error).max(initial=0.0)))
        progress(bits.nbytes)
    _check_source(source, reader.checksum(), sums)
    slices = linear.outlier_weight.nbytes if linear.outlier_weight else 0
    total = linear.weight.nbytes + linear.scale.nbytes + slices
    sqnr = 10 * math.log10(signal / noise) if noise else None
    return TensorQuality(linear.path, sqnr, largest, slices / max(total, 1))


def _compare_kept(
    tensor: StoredTensor,
    source: StoredTensor | Matrix,
    sums: Mapping[str, Any],
    progress: Progress,
) -> None:
    _check_shape(source, tensor.shape)
    whole = source if isinstance(source, Matrix) else as_rows(source, _BLOCK_ELEMENTS)
    mine = as_rows(tensor, _BLOCK_ELEMENTS)
    reader = MatrixReader(whole, _BLOCK_ELEMENTS)
    for first, bits in reader.blocks():
        found = read_rows(mine.stored, first, first + len(bits))
        _check_bits(whole, bits, tensor, found, first)
        progress(bits.nbytes)
    _check_source(source, reader.checksum(), sums)


def _check_bits(
    source: Matrix, bits: Bits, tensor: StoredTensor, found: npt.NDArray[Any], first: int
) -> None:
    """A block in 16 bits is the source's, bit for bit, or its rounding."""
    if source.dtype != tensor.dtype:
        bits, _ = round_to_half(np.ascontiguousarray(bits).view(np.float32), tensor.dtype)
    same = bits == found.view(bits.dtype)
    if not same.all():
        row = first + int((~same).any(axis=1).argmax())
        raise _mismatch(tensor, row, "the source's values bit for bit")


def _values(found: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.float32]:
    bits = np.ascontiguousarray(found).view(np.uint16)
    return widen(bits, dtype, np.empty(bits.shape, np.float32))


def _check_shape(source: StoredTensor | Matrix, shape: tuple[int, ...]) -> None:
    if source.shape != shape:
        raise SourceMismatchError(
            "not the source that was converted: another shape", file=source.file,
            tensor=source.name, expected=list(shape), found=list(source.shape),
        )  # fmt: skip


def _check_source(source: StoredTensor | Matrix, checksum: str, sums: Mapping[str, Any]) -> None:
    entry = sums.get(source.name)
    expected = entry.get("xxh3_128") if isinstance(entry, dict) else None
    if expected != checksum:
        raise SourceMismatchError(
            "not the source that was converted: another checksum", file=source.file,
            tensor=source.name, expected=expected, found=checksum,
        )  # fmt: skip


def _mismatch(tensor: StoredTensor, row: int, expected: str) -> SourceMismatchError:
    return SourceMismatchError(
        f"row {row} is not the source's", file=tensor.file, tensor=tensor.name, expected=expected,
        hint="the folder is damaged, or was converted from another source",
    )  # fmt: skip
