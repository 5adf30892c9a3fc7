"""Compare a converted folder with its source: how exact each linear is; what else is identical, rounded or left out.

For a weight ``w`` and its dequantized value ``v``: SQNR = 10 log10(sum w^2 / sum (w - v)^2) in dB, over the whole
matrix. Codes and row scales are recomputed by the formula of SPEC.md section 1.1, without the converter's quantizer, and
must equal the folder's; so a comparison leaves nothing but padding unchecked. Codes of compensated rounding depend on
activations as well: they must be within ``MOST_STEPS`` of the recomputed ones. Both folders are read a block of rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import QualityError, SourceMismatchError
from ..formats.hub.download import Source
from ..formats.int8.folder import ConvertedFolder, QuantizedLinear
from ..formats.int8.names import BIAS, MOST_STEPS
from ..formats.safetensors.dtypes import FLOAT_DTYPES
from ..formats.safetensors.stored import StoredTensor, read_array, read_rows
from ..formats.source.checkpoint import CONFIG_FILE
from ..formats.source.matrix import Matrix, MatrixReader, as_bytes, as_rows
from ..host import processors
from ..progress import Advance, Progress, counted, silent
from .options import Rounding, read_options
from .outliers.selection import Kept
from .rounding.float16_bits import Bits, round_to_half, widen
from .source import OpenedSource, open_source

_Values = npt.NDArray[np.float32]

_SMALLEST_SCALE: Final = np.float32(2.0**-126)
_BLOCK_ELEMENTS: Final = 1 << 18


@dataclass(frozen=True)
class TensorQuality:
    """How faithfully a converted linear represents its source."""

    name: str
    sqnr_db: float | None
    """None if nothing was lost."""
    max_error: float
    """Largest ``|w - v|``."""
    outlier_share: float
    """Fraction of the linear's bytes taken by outlier columns."""

    @property
    def order(self) -> float:
        """The SQNR as a sort key."""
        return math.inf if self.sqnr_db is None else self.sqnr_db


@dataclass(frozen=True)
class Comparison:
    """The result of comparing a converted folder with its source."""

    linears: list[TensorQuality]
    """Every quantized linear, in the order of the source's selection."""
    same: int
    """Number of tensors that match the source bit for bit."""
    rounded: dict[str, int]
    """Tensors rounded from float32 to 16 bits (outlier columns under the linear's weight), and the number of values changed."""
    left_out: dict[str, str]
    """Tensors of the source that are not in the folder, and why."""
    rounding: Rounding
    """How codes were chosen."""


@dataclass(frozen=True)
class _Pair:
    """An item of the folder and the source tensor it was made from."""

    converted: QuantizedLinear | StoredTensor
    source: Matrix | StoredTensor
    checksum: object
    """Checksum of the source's bytes, from the manifest."""
    most_steps: int
    """Largest distance of a code from the nearest one."""


def compare_tensors(
    converted: ConvertedFolder,
    source: Source,
    progress: Progress = silent,
    *,
    jobs: int | None = None,
) -> Comparison:
    """The quality of every quantized linear, and what happened to everything else.

    Args:
        converted: the folder.
        source: what it was converted from, selected with the options in its manifest.
        progress: called as the work proceeds; from any thread, but never concurrently.
        jobs: number of tensors to process in parallel; None: one per processor.

    Raises:
        SourceMismatchError: the folder was converted from another source; or a code, row scale, outlier column, kept
            tensor or key of the config differs from the source.
        JsonFileError: the manifest's options are malformed.
        NotFoundError, CheckpointError, SafetensorsError: the source is missing, malformed, or changed in the meantime.
    """
    options = read_options(converted)
    opened = open_source(source, options)
    _check_config(converted, opened)
    left_out = dict(opened.selection.skipped)
    most_steps = MOST_STEPS if options.rounding == "compensated" else 0
    pairs = list(_pairs(converted, opened, left_out, most_steps))
    advance = counted(progress, "compare", sum(pair.source.nbytes for pair in pairs))
    with ThreadPoolExecutor(jobs or processors()) as executor:
        futures = [executor.submit(_compare, pair, advance) for pair in pairs]
        try:
            results = [future.result() for future in futures]
        except BaseException:
            executor.shutdown(wait=True, cancel_futures=True)
            raise
    kept = [pair for pair in pairs if isinstance(pair.converted, StoredTensor)]
    rounded = {
        pair.source.name: result.rounded for pair, result in zip(pairs, results, strict=True) if result.is_rounded
    }  # fmt: skip
    linears = [result.quality for result in results if result.quality is not None]
    same = len(kept) - sum(pair.source.name in rounded for pair in kept)
    return Comparison(linears, same, rounded, left_out, options.rounding)


def _check_config(converted: ConvertedFolder, opened: OpenedSource) -> None:
    """Check that the config equals the source's, apart from the section on quantization."""
    mine, yours = dict(converted.config), dict(opened.checkpoint.config)
    for config in (mine, yours):
        config.pop("quantization_config", None)
    for key in sorted(mine.keys() | yours.keys()):
        if key not in mine or key not in yours or mine[key] != yours[key]:
            raise SourceMismatchError(
                f"key '{key}' differs from the source", file=converted.folder / CONFIG_FILE,
                expected=repr(yours.get(key)), found=repr(mine.get(key)),
            )  # fmt: skip


def median_sqnr(qualities: Sequence[TensorQuality]) -> float | None:
    """The median over linears, in dB; None if there are none or nothing was lost."""
    middle = median([quality.order for quality in qualities]) if qualities else math.inf
    return middle if math.isfinite(middle) else None


def check_sqnr(folder: Path, qualities: Sequence[TensorQuality], limit: float) -> None:
    """Raise QualityError, naming the worst linear, if one is below ``limit`` dB."""
    low = sorted((q for q in qualities if q.order < limit), key=lambda q: q.order)
    if low:
        raise QualityError(
            f"SQNR is below the limit for {len(low)} of {len(qualities)} tensors",
            file=folder, tensor=low[0].name, expected=f"at least {limit:g} dB",
            found=f"{low[0].order:.1f} dB",
            hint="keep it or more of its columns in 16 bits, or lower the limit",
        )  # fmt: skip


def _pairs(
    converted: ConvertedFolder, opened: OpenedSource, left_out: dict[str, str], most_steps: int
) -> Iterator[_Pair]:
    """Everything to compare; raises SourceMismatchError before anything is read if names or shapes differ.

    What an earlier release left out but this one would keep is added to ``left_out``.
    """
    _check_left_out(converted, opened)
    recorded = converted.manifest.source.get("tensors")
    records: dict[str, Any] = dict(recorded) if isinstance(recorded, dict) else {}
    linears, kept = dict(converted.linears), {t.name: t for t in converted.others()}
    kept |= {x.bias.name: x.bias for x in linears.values() if x.bias is not None}

    def pair(item: QuantizedLinear | StoredTensor | None, source: Matrix | StoredTensor) -> _Pair:
        if item is None:
            raise _not_the_source(source, "it has a tensor that the converted one lacked")
        record = records.pop(source.name, None)
        record = record if isinstance(record, dict) else {}
        _check_record(item, source, record)
        return _Pair(item, source, record.get("xxh3_128"), most_steps)

    for item in opened.selection.items:
        if isinstance(item, Kept):
            if item.name in converted.manifest.skipped and item.name not in kept:
                left_out[item.name] = converted.manifest.skipped[item.name]
            else:
                yield pair(kept.pop(item.name, None), item.source)
            continue
        for x in item.linears:
            yield pair(linears.pop(x.path, None), x.weight)
            if x.bias is not None:
                yield pair(kept.pop(f"{x.path}.{BIAS}", None), x.bias)
    for name in [*linears, *kept]:
        raise SourceMismatchError("not the source that was converted: a tensor is missing",
                                  file=opened.checkpoint.folder, tensor=name)  # fmt: skip
    for name in records:
        raise SourceMismatchError("a tensor of the source is missing", file=converted.folder,
                                  tensor=name, hint="copy the folder again")  # fmt: skip


def _check_left_out(converted: ConvertedFolder, opened: OpenedSource) -> None:
    """Check that exactly what was left out would be left out of this source."""
    recorded, found = converted.manifest.skipped, opened.selection.skipped
    for name in found.keys() - recorded.keys():
        raise SourceMismatchError("not the source that was converted: it has a tensor that the converted one lacked",
                                  file=opened.checkpoint.folder, tensor=name)  # fmt: skip
    for name in recorded.keys() - found.keys() - opened.checkpoint.tensors.keys():
        raise SourceMismatchError("not the source that was converted: a tensor is missing",
                                  file=opened.checkpoint.folder, tensor=name)  # fmt: skip


def _check_record(
    item: QuantizedLinear | StoredTensor, source: Matrix | StoredTensor, record: dict[str, Any]
) -> None:
    shape: tuple[int, ...]
    if isinstance(item, QuantizedLinear):
        shape = (item.out_features, item.in_features)
    else:
        shape = item.shape
    if source.shape != shape or source.dtype != record.get("dtype"):
        raise _not_the_source(source, "another dtype or shape", f"{record.get('dtype')} {list(shape)}",
                              f"{source.dtype} {list(source.shape)}")  # fmt: skip


@dataclass
class _Result:
    """The result of comparing two tensors."""

    quality: TensorQuality | None = None
    is_rounded: bool = False
    rounded: int = 0


def _compare(pair: _Pair, advance: Advance) -> _Result:
    source = pair.source
    if isinstance(source, Matrix):
        matrix = source
    elif source.dtype in FLOAT_DTYPES:
        matrix = as_rows(source, _BLOCK_ELEMENTS)
    else:
        matrix = as_bytes(source)
        if isinstance(pair.converted, StoredTensor) and pair.converted.dtype != source.dtype:
            raise _not_the_source(source, "another dtype", pair.converted.dtype, source.dtype)
    reader, result = MatrixReader(matrix, _BLOCK_ELEMENTS), _Result()
    with np.errstate(all="ignore"):  # a wrong source may contain anything
        if isinstance(pair.converted, QuantizedLinear):
            result.quality = _compare_linear(
                pair.converted, matrix, reader, advance, result, pair.most_steps
            )
        else:
            _compare_kept(pair.converted, matrix, reader, advance, result)
    if reader.checksum() != pair.checksum:  # after the values, whose differences say more
        raise _not_the_source(source, "another checksum", pair.checksum, reader.checksum())
    return result


def _compare_linear(
    linear: QuantizedLinear, source: Matrix, reader: MatrixReader, advance: Advance,
    result: _Result, most_steps: int,
) -> TensorQuality:  # fmt: skip
    scale = read_array(linear.scale)
    columns = read_array(linear.outlier_index) if linear.outlier_index else np.empty(0, np.int32)
    signal = noise = largest = 0.0
    for first, bits in reader.blocks():
        last = first + len(bits)
        weight = widen(bits, source.dtype, np.empty(bits.shape, np.float32))
        error = np.zeros(weight.shape)
        if linear.outlier_weight is not None:
            kept = read_rows(linear.outlier_weight, first, last)
            _check_bits(source, bits[:, columns], linear.outlier_weight, kept, first, result)
            error[:, columns] = weight[:, columns] - _values(kept, linear.outlier_weight.dtype)
        signal += float(np.square(weight, dtype=np.float64).sum())
        weight[:, columns] = 0
        _check_rows(linear.scale, first, _scales(weight), scale[first:last])
        codes = read_rows(linear.weight, first, last)[:, :, 0]
        nearest = _codes(weight, scale[first:last])
        if most_steps:
            nearest = _tolerated(nearest, codes, columns, scale[first:last], most_steps)
        _check_rows(linear.weight, first, nearest, codes)
        dequantized = codes * scale[first:last, None].astype(np.float64)
        error += weight - dequantized  # both are 0 in outlier columns
        noise += float(np.square(error).sum())
        largest = max(largest, float(np.abs(error).max(initial=0.0)))
        advance(source.nbytes * len(bits) // max(reader.rows, 1))
    slices = linear.outlier_weight.nbytes if linear.outlier_weight else 0
    total = linear.weight.nbytes + linear.scale.nbytes + slices
    sqnr = 10 * math.log10(signal / noise) if noise else None
    return TensorQuality(linear.path, sqnr, largest, slices / max(total, 1))


def _scales(weight: _Values) -> _Values:
    largest = np.abs(weight).max(axis=1, initial=0.0)
    scale: _Values = np.maximum(largest / np.float32(127), _SMALLEST_SCALE)
    return np.where(largest > 0, scale, largest)


def _codes(weight: _Values, scale: _Values) -> _Values:
    codes: _Values = np.rint(weight / np.where(scale > 0, scale, np.float32(1))[:, None])
    return codes


def _tolerated(
    nearest: _Values, codes: npt.NDArray[Any], columns: npt.NDArray[Any], scale: _Values, most_steps: int
) -> _Values:  # fmt: skip
    """``codes`` where compensated rounding may have chosen them, the nearest codes elsewhere."""
    wrong = (np.abs(codes - nearest) > most_steps) | (codes == -128)
    wrong[:, columns] = codes[:, columns] != 0
    wrong[scale == 0] = codes[scale == 0] != 0
    return np.where(wrong, nearest, codes)


def _compare_kept(
    tensor: StoredTensor, source: Matrix, reader: MatrixReader, advance: Advance,
    result: _Result,
) -> None:  # fmt: skip
    if source.dtype not in FLOAT_DTYPES:
        tensor = tensor._replace(dtype=source.dtype)
    rows = tensor._replace(shape=source.shape)
    for first, bits in reader.blocks():
        found = read_rows(rows, first, first + len(bits))
        _check_bits(source, bits, tensor, found, first, result)
        advance(source.nbytes * len(bits) // max(reader.rows, 1))


def _check_bits(
    source: Matrix, bits: Bits, tensor: StoredTensor, found: npt.NDArray[Any], first: int, result: _Result
) -> None:  # fmt: skip
    """Check that a block equals the source bit for bit, or is its rounding, which is counted."""
    if source.dtype == "F32" != tensor.dtype:
        bits, changed = round_to_half(np.ascontiguousarray(bits).view(np.float32), tensor.dtype)
        result.is_rounded = True
        result.rounded += changed
    elif source.dtype != tensor.dtype:
        raise SourceMismatchError("not in the source's dtype", file=tensor.file, tensor=tensor.name,
                                  expected=source.dtype, found=tensor.dtype)  # fmt: skip
    _check_rows(tensor, first, bits, found.view(bits.dtype))


def _check_rows(
    tensor: StoredTensor, first: int, expected: npt.NDArray[Any], found: npt.NDArray[Any]
) -> None:
    """Check that the rows from ``first`` on are as expected."""
    same = expected == found
    if not same.all():
        wrong = ~same.reshape(len(same), -1).all(axis=1)
        raise SourceMismatchError(
            f"row {first + int(wrong.argmax())} differs from the source", file=tensor.file,
            tensor=tensor.name, hint="the folder is damaged, or was converted from another source",
        )  # fmt: skip


def _values(found: npt.NDArray[Any], dtype: str) -> _Values:
    bits = np.ascontiguousarray(found).view(np.uint16)
    return widen(bits, dtype, np.empty(bits.shape, np.float32))


def _not_the_source(
    source: Matrix | StoredTensor, why: str, expected: object = None, found: object = None
) -> SourceMismatchError:
    return SourceMismatchError(
        f"not the source that was converted: {why}", file=source.file, tensor=source.name,
        expected=expected, found=found,
    )  # fmt: skip
