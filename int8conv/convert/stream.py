"""Carry out a plan: each tensor is read, quantized and written a block of rows at a time, several tensors in parallel.

Each worker holds one block. Offsets are planned, so the output does not depend on the number of workers or the block size.
"""

from __future__ import annotations

import math
import queue
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import (
    FileChangedError,
    HalfOverflowError,
    NonFiniteWeightError,
    NotFoundError,
    TruncatedFileError,
)
from ..formats.int8.layout import ShardLayout
from ..formats.int8.names import OUTLIER_INDEX, OUTLIER_WEIGHT, SCALE, WEIGHT
from ..formats.int8.writer import Flusher, ShardWriter
from ..formats.safetensors.buffers import Buffers
from ..formats.safetensors.checksum import running_checksum
from ..formats.safetensors.dtypes import FLOAT_DTYPES, INFINITY_BITS
from ..formats.safetensors.storage import LocalFile
from ..formats.safetensors.stored import StoredTensor, stored_checksum
from ..formats.source.matrix import Matrix, MatrixReader, as_bytes, as_rows
from ..progress import Advance
from .journal import Journal
from .plan import KeepTask, QuantizeTask, Task
from .rounding.float16_bits import Bits, largest_magnitudes, round_to_half, widen
from .rounding.interface import CodeSource, NewQuantizer, quantizer_for
from .rounding.quantize import Codes, NonFiniteRowError, RowQuantizer, check_finite
from .rounding.sample import RowSample
from .stopwatch import Stopwatch


@dataclass
class TaskResult:
    """The result of a task."""

    source_checksum: str
    checksums: dict[str, str]
    """Checksums of the tensors written, by name."""
    rounded: int = 0
    """Number of values of an F32 source that rounding to 16 bits changed."""
    sqnr_db: float | None = None
    """SQNR of a quantized matrix on a sample of its rows; None if nothing was lost."""
    max_error: float = 0.0
    """Largest difference between a weight and its dequantized value on the same sample."""
    resumed: bool = False
    """Done by an earlier attempt."""

    @classmethod
    def recorded(cls, entry: object, names: Sequence[str]) -> TaskResult | None:
        """The result in a journal entry, if it is valid for a task that writes tensors of those names."""
        if not isinstance(entry, dict):
            return None
        try:
            result = cls(**entry, resumed=True)
        except TypeError:
            return None
        sums, errors = result.checksums, (result.sqnr_db or 0.0, result.max_error)
        if (
            not isinstance(sums, dict)
            or set(sums) != set(names)
            or type(result.rounded) is not int
            or result.rounded < 0
            or not all(isinstance(e, int | float) and math.isfinite(e) for e in errors)
        ):
            return None
        return result


@dataclass(frozen=True)
class Workers:
    """The number of parallel tasks and the block size in elements."""

    jobs: int
    block_elements: int
    device: str = "cpu"
    """Device to quantize on."""


@dataclass
class _Worker:
    """What a task uses while it runs."""

    block_elements: int
    quantizer: NewQuantizer
    buffers: Buffers
    watch: Stopwatch
    writers: Mapping[str, ShardWriter]
    progress: Advance


def run_tasks(
    tasks: Sequence[Task],
    layouts: Sequence[ShardLayout],
    folder: Path,
    workers: Workers,
    *,
    progress: Advance,
    journal: Journal | None = None,
    watch: Stopwatch | None = None,
    chosen: CodeSource | None = None,
) -> list[TaskResult]:
    """Write every shard of ``layouts`` into ``folder``; results are in the order of ``tasks``.

    Tasks that are in the journal and whose bytes are intact are not repeated; the others are recorded once done.
    ``watch`` gets the seconds summed over all workers, and those of the final flush. Linears of ``chosen`` come last, one by one.

    Raises:
        NonFiniteWeightError: a NaN or infinity; names tensor and row.
        HalfOverflowError: a 32-bit value that the 16-bit type cannot represent.
        TruncatedFileError, NotFoundError: the source changed while it was being read.
    """
    watch = watch or Stopwatch()
    new_quantizer = quantizer_for(workers.device)
    shards = open_shards(folder, layouts)
    try:
        writers = {t.name: shard for shard in shards for t in shard.layout.tensors}
        with Flusher(shards):
            pool = [
                _Worker(
                    workers.block_elements, new_quantizer, Buffers(), Stopwatch(), writers, progress
                )
                for _ in range(workers.jobs)
            ]
            results = _run_all(tasks, pool, journal, chosen)
        for worker in pool:
            watch.add(worker.watch)
        return results
    finally:
        watch.start()
        for shard in shards:
            shard.close()
        watch.lap("flush")


def open_shards(folder: Path, layouts: Sequence[ShardLayout]) -> list[ShardWriter]:
    """Open all of them or none: if the disk is too small for one, it is not filled up with the others."""
    shards: list[ShardWriter] = []
    try:
        for layout in layouts:
            shards.append(ShardWriter(folder, layout))  # noqa: PERF401 - opened shards are closed on error
    except OSError:
        for shard in shards:
            shard.abandon()
        raise
    return shards


def _run_all(
    tasks: Sequence[Task],
    pool: Sequence[_Worker],
    journal: Journal | None,
    chosen: CodeSource | None,
) -> list[TaskResult]:
    later = chosen.paths if chosen else frozenset()

    def run(task: Task, worker: _Worker) -> TaskResult | None:
        done = _resumed(task, worker, journal)
        if done is not None or (isinstance(task, QuantizeTask) and task.path in later):
            return done
        return _run(task, worker, journal)

    results = _in_threads(run, tasks, pool)
    pending = {
        task.path: number
        for number, (task, result) in enumerate(zip(tasks, results, strict=True))
        if result is None and isinstance(task, QuantizeTask)
    }
    if chosen and pending:
        for path, codes in chosen.codes(pending):
            number = pending[path]
            pool[0].watch.start()
            results[number] = _run(tasks[number], pool[0], journal, codes)
    return [result for result in results if result is not None]


def _in_threads(
    run: Callable[[Task, _Worker], TaskResult | None],
    tasks: Sequence[Task],
    pool: Sequence[_Worker],
) -> list[TaskResult | None]:
    free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in pool:
        free.put(worker)

    def run_with_any(task: Task) -> TaskResult | None:
        worker = free.get()
        try:
            worker.watch.start()
            return run(task, worker)
        finally:
            free.put(worker)

    with ThreadPoolExecutor(len(pool)) as executor:
        futures = [executor.submit(run_with_any, task) for task in tasks]
        try:
            return [future.result() for future in futures]
        except BaseException:
            executor.shutdown(wait=True, cancel_futures=True)
            raise


def _key(task: Task) -> str:
    return f"tensor {task.source.name}"


def _resumed(task: Task, worker: _Worker, journal: Journal | None) -> TaskResult | None:
    """What an earlier attempt has recorded, if it is still true."""
    if journal is None:
        return None
    recorded = TaskResult.recorded(journal.entries.get(_key(task)), _names(task))
    if recorded is None or not _still_true(task, recorded, worker.writers):
        return None
    worker.watch.lap("verify")
    worker.progress(task.source.nbytes)
    return recorded


def _names(task: Task) -> list[str]:
    """Names of the tensors that a task writes."""
    if not isinstance(task, QuantizeTask):
        return [task.name]
    kinds = (WEIGHT, SCALE, *((OUTLIER_INDEX, OUTLIER_WEIGHT) if len(task.columns) else ()))
    return [f"{task.path}.{kind}" for kind in kinds]


def _still_true(task: Task, recorded: TaskResult, writers: Mapping[str, ShardWriter]) -> bool:
    """Whether everything written is intact and the source is unchanged (on the hub it cannot change)."""
    written = recorded.checksums.items()
    if not all(writers[name].checksum(name) == value for name, value in written):
        return False
    local = isinstance(task.source.file, LocalFile)
    return not local or stored_checksum(task.source) == recorded.source_checksum


def _run(
    task: Task, worker: _Worker, journal: Journal | None, codes: Codes | None = None
) -> TaskResult:
    try:
        if isinstance(task, QuantizeTask):
            result = _quantize(task, worker, codes)
        else:
            result = _keep(task, worker)
    except (FileChangedError, NotFoundError, TruncatedFileError) as error:
        raise error.about(task.source.name) from error
    if journal is not None:
        journal.record(_key(task), {k: v for k, v in asdict(result).items() if k != "resumed"})
    return result


class _Output:
    """One output tensor, written sequentially, with its checksum."""

    def __init__(self, worker: _Worker, name: str) -> None:
        self.name = name
        self._writer, self._watch = worker.writers[name], worker.watch
        self._sum, self._position = running_checksum(), 0

    def write(self, array: npt.NDArray[Any]) -> None:
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        self._sum.update(data)
        self._watch.lap("checksum")
        self._writer.write(self.name, data, self._position)
        self._watch.lap("write")
        self._position += len(data)

    def checksum(self) -> str:
        return self._sum.hexdigest()


def _quantize(task: QuantizeTask, worker: _Worker, codes: Codes | None) -> TaskResult:
    source, k, watch = task.source, len(task.columns), worker.watch
    kinds = (WEIGHT, SCALE, *((OUTLIER_INDEX, OUTLIER_WEIGHT) if k else ()))
    outputs = {kind: _Output(worker, f"{task.path}.{kind}") for kind in kinds}
    sample, rounded = RowSample(*source.shape), 0
    quantizer = (
        worker.quantizer(source.dtype, task.columns, worker.buffers, sample)
        if codes is None
        else RowQuantizer(source.dtype, task.columns, worker.buffers, sample, codes)
    )
    if k:
        outputs[OUTLIER_INDEX].write(task.columns)
    reader = MatrixReader(source, worker.block_elements, worker.buffers)
    for first, bits in reader.blocks():
        watch.lap("read")
        try:
            block = quantizer.quantize(bits, first)
        except NonFiniteRowError as error:
            raise non_finite_weight(source, first + error.row) from None
        parts: dict[str, npt.NDArray[Any]] = {WEIGHT: block.codes, SCALE: block.scale}
        if k:
            kept, changed = to_half(source, block.outliers, task.half, first)
            parts[OUTLIER_WEIGHT], rounded = kept, rounded + changed
            sample.add_exact(widen(kept, task.half, np.empty(kept.shape, np.float32)), first)
        watch.lap("quantize")
        for kind, part in parts.items():
            outputs[kind].write(part)
        worker.progress(len(bits) * source.nbytes // max(source.shape[0], 1))
    sums = {output.name: output.checksum() for output in outputs.values()}
    return TaskResult(reader.checksum(), sums, rounded, sample.sqnr_db, sample.max_error)


def _keep(task: KeepTask, worker: _Worker) -> TaskResult:
    if task.source.dtype not in FLOAT_DTYPES and isinstance(task.source, StoredTensor):
        return _copy(task.name, task.source, worker)
    output, rounded = _Output(worker, task.name), 0
    source = task.source
    if not isinstance(source, Matrix):
        source = as_rows(source, worker.block_elements)
    reader = MatrixReader(source, worker.block_elements, worker.buffers)
    for first, bits in reader.blocks():
        worker.watch.lap("read")
        scratch = worker.buffers.take("scratch", bits.shape, bits.dtype)
        largest = largest_magnitudes(bits, source.dtype, scratch)
        try:
            check_finite(largest, source.dtype)
        except NonFiniteRowError as error:
            raise non_finite_weight(source, first + error.row) from None
        half, changed = to_half(source, bits, task.dtype, first)
        rounded += changed
        worker.watch.lap("quantize")
        output.write(half)
        worker.progress(len(bits) * source.nbytes // max(source.shape[0], 1))
    return TaskResult(reader.checksum(), {output.name: output.checksum()}, rounded)


def _copy(name: str, source: StoredTensor, worker: _Worker) -> TaskResult:
    """Copy integers and masks byte by byte."""
    output = _Output(worker, name)
    reader = MatrixReader(as_bytes(source), worker.block_elements, worker.buffers)
    for _, data in reader.blocks():
        worker.watch.lap("read")
        output.write(data)
        worker.progress(len(data))
    return TaskResult(reader.checksum(), {name: output.checksum()})


def to_half(
    source: StoredTensor | Matrix, bits: Bits, half: str, first_row: int
) -> tuple[Bits, int]:
    """Bits ``[rows, columns]`` in ``half``: unchanged, or rounded from F32, with the number of values that changed.

    Raises:
        HalfOverflowError: a value that ``half`` cannot represent.
    """
    if source.dtype == half:
        return bits, 0
    rounded, changed = round_to_half(np.ascontiguousarray(bits).view(np.float32), half)
    infinite = (rounded & 0x7FFF) >= INFINITY_BITS[half]
    if infinite.any():
        row = first_row + int(infinite.any(axis=1).argmax())
        raise HalfOverflowError(
            f"row {row} has a value that does not fit {half}", file=source.file, tensor=source.name,
            hint="--dtype bfloat16 has float32's range" if half == "F16" else None,
        )  # fmt: skip
    return rounded, changed


def non_finite_weight(source: StoredTensor | Matrix, row: int) -> NonFiniteWeightError:
    """The error for a NaN or infinity in a source tensor."""
    return NonFiniteWeightError(
        f"NaN or infinity in row {row}", file=source.file, tensor=source.name,
        expected="finite weights", hint="the source is damaged or its training diverged: repair it",
    )  # fmt: skip
