"""Carry out a plan: each tensor is read, quantised and written a block of rows at a time, several tensors at once.

A worker holds one block. Offsets are planned, so the bytes do not depend on the number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import HalfOverflowError, NonFiniteWeightError
from ..formats.checkpoint import StoredTensor
from ..formats.checksum import checksum, running_checksum
from ..formats.layout import ShardLayout
from ..formats.names import OUTLIER_INDEX, OUTLIER_WEIGHT, SCALE, WEIGHT
from ..formats.writer import ShardWriter
from .halves import INFINITY, Bits, round_to_half
from .journal import Journal
from .plan import KeepTask, QuantizeTask, Task
from .quantize import NonFiniteRowError, RowQuantizer, check_finite

Progress = Callable[[int], None]
"""Called with the number of source bytes done since the last call."""

BLOCK_ELEMENTS: Final = 1 << 18
"""1 MiB in float32: the passes over a block stay in a core's cache."""


@dataclass
class TaskResult:
    """What a task leaves behind."""

    source_checksum: str
    checksums: dict[str, str]
    """Of the tensors written, by name."""
    rounded: int = 0
    """Values of an F32 source that rounding to 16 bits changed."""
    resumed: bool = False
    """Done by an earlier attempt."""


def run_tasks(
    tasks: Sequence[Task],
    layouts: Sequence[ShardLayout],
    folder: Path,
    *,
    jobs: int,
    progress: Progress,
    journal: Journal | None = None,
) -> list[TaskResult]:
    """Write every shard of ``layouts`` into ``folder``; results come in the order of ``tasks``.

    Tasks that the journal has, and whose bytes are there, are not done again; the others are recorded when they are done.

    Raises:
        NonFiniteWeightError: a NaN or an infinity; names tensor and row.
        HalfOverflowError: a 32-bit value that the 16-bit type cannot hold.
        TruncatedFileError, NotFoundError: the source changed while it was read.
    """
    shards = [ShardWriter(folder, layout) for layout in layouts]
    writers = {t.name: shard for shard in shards for t in shard.layout.tensors}
    try:
        with ThreadPoolExecutor(jobs) as executor:
            futures = [
                executor.submit(_run_once, task, writers, progress, journal) for task in tasks
            ]
            try:
                return [future.result() for future in futures]
            except BaseException:
                executor.shutdown(wait=True, cancel_futures=True)
                raise
    finally:
        for shard in shards:
            shard.close()


def _run_once(
    task: Task, writers: Mapping[str, ShardWriter], progress: Progress, journal: Journal | None
) -> TaskResult:
    if journal is None:
        return _run(task, writers, progress)
    key = f"tensor {task.source.name}"
    if (entry := journal.entries.get(key)) is not None:
        recorded = TaskResult(**entry, resumed=True)
        if all(writers[name].checksum(name) == s for name, s in recorded.checksums.items()):
            progress(task.source.nbytes)
            return recorded
    result = _run(task, writers, progress)
    journal.record(key, {k: v for k, v in asdict(result).items() if k != "resumed"})
    return result


def _run(task: Task, writers: Mapping[str, ShardWriter], progress: Progress) -> TaskResult:
    if isinstance(task, QuantizeTask):
        return _quantize(task, writers, progress)
    return _keep(task, writers, progress)


def _quantize(
    task: QuantizeTask, writers: Mapping[str, ShardWriter], progress: Progress
) -> TaskResult:
    out, in_features = task.source.shape
    k = len(task.columns)
    names = {kind: f"{task.path}.{kind}" for kind in (WEIGHT, SCALE, OUTLIER_INDEX, OUTLIER_WEIGHT)}
    scale = np.empty(out, np.float32)
    outliers = np.empty((out, k), np.uint16)
    codes_sum, rounded = running_checksum(), 0
    reader = BlockReader(task.source)
    quantizer = RowQuantizer(task.source.dtype, in_features, task.columns, reader.rows_per_block)
    for first, bits in reader.blocks():
        rows = slice(first, first + len(bits))
        try:
            block = quantizer.quantize(bits)
        except NonFiniteRowError as error:
            raise non_finite_weight(task.source, first + error.row) from None
        scale[rows] = block.scale
        outliers[rows], changed = _to_half(task.source, block.outliers, task.half, first)
        rounded += changed
        data = block.codes.reshape(-1).data
        writers[names[WEIGHT]].write(names[WEIGHT], data, first * in_features)
        codes_sum.update(data)
        progress(bits.nbytes)
    checksums = {names[WEIGHT]: codes_sum.hexdigest()}
    small: dict[str, npt.NDArray[Any]] = {SCALE: scale}
    if k:
        small |= {OUTLIER_INDEX: task.columns, OUTLIER_WEIGHT: outliers}
    for kind, array in small.items():
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        writers[names[kind]].write(names[kind], data)
        checksums[names[kind]] = checksum(data)
    return TaskResult(reader.checksum(), checksums, rounded)


def _keep(task: KeepTask, writers: Mapping[str, ShardWriter], progress: Progress) -> TaskResult:
    source = task.source
    reader = BlockReader(source)
    scratch = np.empty((reader.rows_per_block, reader.columns), reader.dtype)
    total, position, rounded = running_checksum(), 0, 0
    for first, bits in reader.blocks():
        try:
            check_finite(bits, source.dtype, scratch[: len(bits)])
        except NonFiniteRowError as error:
            raise non_finite_weight(source, first + error.row) from None
        half, changed = _to_half(source, bits, task.dtype, first)
        rounded += changed
        data = half.reshape(-1).view(np.uint8).data
        writers[source.name].write(source.name, data, position)
        total.update(data)
        position += len(data)
        progress(bits.nbytes)
    return TaskResult(reader.checksum(), {source.name: total.hexdigest()}, rounded)


def _to_half(source: StoredTensor, bits: Bits, half: str, first_row: int) -> tuple[Bits, int]:
    """Bits in ``half``: as they are, or rounded from F32 with the number of values that changed."""
    if source.dtype == half:
        return bits, 0
    rounded, changed = round_to_half(np.ascontiguousarray(bits).view(np.float32), half)
    infinite = (rounded & 0x7FFF) >= INFINITY[half]
    if infinite.any():
        row = first_row + int(infinite.any(axis=1).argmax())
        raise HalfOverflowError(
            f"row {row} has a value that does not fit {half}", file=source.file, tensor=source.name,
            hint="--dtype bfloat16 has float32's range" if half == "F16" else None,
        )  # fmt: skip
    return rounded, changed


def non_finite_weight(source: StoredTensor, row: int) -> NonFiniteWeightError:
    """The error for a NaN or an infinity in a source tensor."""
    return NonFiniteWeightError(
        f"NaN or infinity in row {row}", file=source.file, tensor=source.name,
        expected="finite weights", hint="the source is damaged, or was trained to this: repair it",
    )  # fmt: skip


class BlockReader:
    """Reads a tensor as blocks of whole rows (its first axis) into one buffer, and sums what it read."""

    def __init__(self, source: StoredTensor) -> None:
        self._source = source
        self.rows = source.shape[0] if source.shape else 1
        self.columns = prod(source.shape[1:])
        self.rows_per_block = max(1, min(self.rows, BLOCK_ELEMENTS // max(self.columns, 1)))
        self.dtype = np.dtype(np.uint32 if source.dtype == "F32" else np.uint16)
        self._sum = running_checksum()

    def blocks(self) -> Iterator[tuple[int, Bits]]:
        """First row and bits ``[rows, columns]`` of each block, which the caller may overwrite."""
        buffer = np.empty((self.rows_per_block, self.columns), self.dtype)
        until = self._source.offset + self._source.nbytes
        with self._source.file.open(until) as reader:
            for first in range(0, self.rows, self.rows_per_block):
                bits = buffer[: min(self.rows_per_block, self.rows - first)]
                data = bits.reshape(-1).view(np.uint8).data
                reader.read_into(data, self._source.offset + first * self.columns * bits.itemsize)
                self._sum.update(data)
                yield first, bits

    def checksum(self) -> str:
        """Of all the bytes read."""
        return self._sum.hexdigest()
