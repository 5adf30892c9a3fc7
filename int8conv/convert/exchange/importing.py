"""``import_checkpoint``: a converted folder from a checkpoint that another quantizer has made int8 already."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from ...errors import ArgumentError, UnsupportedModelError
from ...formats.hub.download import resolve
from ...formats.int8.folder import open_converted
from ...formats.int8.layout import ShardLayout, plan_layout
from ...formats.int8.names import SCALE, WEIGHT
from ...formats.int8.workspace import open_workspace
from ...formats.int8.writer import ShardWriter
from ...formats.outputs import check_apart, check_folder
from ...formats.safetensors.checksum import checksum, running_checksum
from ...formats.safetensors.stored import stored_checksum
from ...formats.source.checkpoint import CONFIG_FILE, Checkpoint, open_checkpoint
from ...formats.source.matrix import Matrix, MatrixReader
from ...formats.source.metadata_files import find_metadata_files
from ...host import processors
from ...progress import Advance, Progress, counted, silent
from ...runtime.models.architecture import read_architecture
from ..by_name.generic import select_by_names
from ..memory import DEFAULT_MAX_MEMORY, plan_workers
from ..metadata_files import make_manifest, write_metadata_files
from ..options import DEFAULT_SHARD_BYTES, ConvertOptions
from ..outliers.rule import NO_OUTLIERS
from ..outliers.selection import Group, Kept, Patterns, Selection, select_modules
from ..plan import KeepTask, Plan, QuantizeTask, make_plan
from ..report import ConvertReport
from ..stream import TaskResult, open_shards, run_tasks
from ..watch import SourceWatch
from .packed import Packed, PackedLinear, find_packed

_BLOCK_ELEMENTS: Final = 1 << 20
_LOWEST: Final = -128
"""A code that compressed-tensors has and this format does not."""


def import_checkpoint(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    dtype: str = "float16",
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    force: bool = False,
    progress: Progress = silent,
) -> ConvertReport:
    """Create a converted folder from a checkpoint of bitsandbytes (int8) or compressed-tensors (W8A8, ``int-quantized``).

    Codes are taken over bit for bit, except that -128, which this format does not have, becomes -127 (a note says how often). Row scales
    become float32: widened, or bitsandbytes' largest magnitudes divided by 127. There are no outlier columns; bitsandbytes' threshold
    becomes that of the outlier fallback. Everything else is treated as by ``convert_checkpoint``.

    Args:
        source: the checkpoint's folder or hub id.
        out: the folder to create; it appears complete or not at all.
        dtype: ``"float16"`` or ``"bfloat16"``, for matrices of the source in float32.
        max_shard_bytes: largest payload of an output file.
        force: replace ``out`` if it is a converted folder.
        progress: called as the work proceeds.

    Raises:
        ArgumentError: the source is not quantized, or is a converted folder; or an option cannot be.
        AlreadyQuantizedError: its weights are packed in a way that cannot be imported.
        CompanionError, NumberError: scales are missing, or none that the format allows.
        UnsupportedModelError: an int8 weight belongs to no linear.
        NotFoundError, HubError, CheckpointError, SafetensorsError, OutputError: as for ``convert_checkpoint``.
    """
    start, out = time.perf_counter(), Path(out)
    options = ConvertOptions(outliers="none", dtype=dtype, max_shard_bytes=max_shard_bytes)
    check_folder(out, force=force)
    resolved = resolve(source)
    check_apart(out, resolved.folder)
    watch = SourceWatch(resolved.folder)
    checkpoint = open_checkpoint(resolved.folder, only=resolved.only)
    packed = find_packed(checkpoint)
    plan, notes = _plan(packed, options)
    layouts = plan_layout(plan.units, max_shard_bytes=max_shard_bytes)
    with open_workspace(out, force=force, source=resolved.folder) as workspace:
        workspace.clear()
        done = _write(plan, packed, layouts, workspace.folder, progress)
        manifest = make_manifest(resolved, options, done.plan, done.results, None)
        told = {"quantizer": packed.quantizer, "codes_below_range": done.below}
        manifest = replace(manifest, source=manifest.source | told)
        with watch.named_errors(checkpoint):
            write_metadata_files(
                workspace.folder, packed.plain, options, layouts, manifest, done.results
            )
        watch.check(checkpoint, done.plan.tasks, done.results)
        open_converted(workspace.folder)
        workspace.commit()
    files = find_metadata_files(resolved.folder, checkpoint.config).notes
    return ConvertReport(
        tensors=len(done.plan.tasks),
        quantized=len(packed.linears),
        outlier_columns=0,
        bytes_in=done.plan.source_bytes,
        bytes_out=sum(layout.nbytes for layout in layouts),
        seconds=time.perf_counter() - start,
        rounded=manifest.rounded,
        notes=checkpoint.notes + files + notes + done.notes + tuple(workspace.notes),
    )


def _plan(packed: Packed, options: ConvertOptions) -> tuple[Plan, tuple[str, ...]]:
    """What ``convert`` would do with the same model in 16 bits, with exactly the source's int8 weights as its linears."""
    found = _select(packed.plain, Patterns())
    quantize = [_path(x.source.name) for x in found.items if isinstance(x, Kept)]
    keep = [_path(y.weight.stored.name) for x in found.items if isinstance(x, Group) for y in x.linears]  # fmt: skip
    patterns = Patterns(
        _one_of(path for path in keep if path not in packed.linears),
        _one_of(path for path in quantize if path in packed.linears),
    )
    try:
        selection = _select(packed.plain, patterns)
    except ArgumentError:  # a pattern that has no effect
        selection = found
    groups = [item for item in selection.items if isinstance(item, Group)]
    mine = {x.path for group in groups for x in group.linears if not x.weight.transposed}
    for path, linear in packed.linears.items():
        if path not in mine:
            raise UnsupportedModelError("an int8 weight that is no linear of this model",
                                        file=linear.weight.file, tensor=linear.weight.name)  # fmt: skip
    choice = replace(NO_OUTLIERS, threshold=packed.threshold)
    plan = make_plan(selection, {group.input: choice for group in groups}, options)
    return replace(plan, skipped=plan.skipped | packed.skipped), selection.notes


def _select(plain: Checkpoint, patterns: Patterns) -> Selection:
    try:
        architecture = read_architecture(plain.config, plain.tensors, plain.folder / CONFIG_FILE)
    except UnsupportedModelError:
        return select_by_names(plain, patterns)
    return select_modules(plain, architecture, patterns)


def _path(name: str) -> str:
    return name.removesuffix(f".{WEIGHT}")


def _one_of(paths: Iterable[str]) -> tuple[str, ...]:
    """A pattern that matches exactly those paths, if there are any."""
    exact = "|".join(map(re.escape, paths))
    return (f"^(?:{exact})$",) if exact else ()


@dataclass(frozen=True)
class _Done:
    """What was written."""

    plan: Plan
    """With the source's tensors as tasks: int8 weights and their scales."""
    results: list[TaskResult]
    below: int
    """How many codes were -128."""
    notes: tuple[str, ...]


def _write(
    plan: Plan, packed: Packed, layouts: list[ShardLayout], folder: Path, progress: Progress
) -> _Done:
    tasks: list[KeepTask] = []
    for task in plan.tasks:
        if isinstance(task, KeepTask):
            tasks.append(task)
        else:
            linear = packed.linears[task.path]
            tasks.append(KeepTask(f"{task.path}.{WEIGHT}", linear.weight, "I8", task.kind))
            tasks.append(KeepTask(f"{task.path}.{SCALE}", linear.scale, "F32", task.kind))
    done = replace(plan, tasks=tuple(tasks))
    paths = [task.path for task in plan.tasks if isinstance(task, QuantizeTask)]
    computed = {f"{path}.{kind}" for path in paths for kind in (WEIGHT, SCALE)}
    kept = [task for task in tasks if task.name not in computed]
    workers = plan_workers(done, processors(), DEFAULT_MAX_MEMORY)
    advance = counted(progress, "import", done.source_bytes)
    of_kept = run_tasks(kept, layouts, folder, workers, progress=advance)
    results = {task.name: result for task, result in zip(kept, of_kept, strict=True)}
    below = codes = 0
    shards = open_shards(folder, layouts)
    try:
        writers = {t.name: shard for shard in shards for t in shard.layout.tensors}
        for path in paths:
            linear = packed.linears[path]
            found, lowest = _write_linear(path, linear, writers.__getitem__, advance)
            results |= found
            below, codes = below + lowest, codes + linear.weight.nbytes
    finally:
        for shard in shards:
            shard.close()
    notes = (
        f"{below:,} of {codes:,} codes were -128 and became -127: these weights are 1/128 smaller, all others exact",
    )
    return _Done(done, [results[task.name] for task in tasks], below, notes if below else ())


def _write_linear(
    path: str, linear: PackedLinear, writer: Callable[[str], ShardWriter], advance: Advance
) -> tuple[dict[str, TaskResult], int]:
    """Codes and scales of one linear; also returns how many codes were -128."""
    names = f"{path}.{WEIGHT}", f"{path}.{SCALE}"
    scale = linear.scales()
    writer(names[1]).write(names[1], scale.view(np.uint8).data)
    width, below, written = linear.weight.shape[1], 0, running_checksum()
    reader = MatrixReader(Matrix(linear.weight), _BLOCK_ELEMENTS)
    for first, bits in reader.blocks():
        codes = bits.view(np.int8)
        lowest = codes == _LOWEST
        below += int(np.count_nonzero(lowest))
        codes[lowest] = _LOWEST + 1
        codes[scale[first : first + len(codes)] == 0] = 0  # whose weights are 0
        data = codes.reshape(-1).view(np.uint8).data
        written.update(data)
        writer(names[0]).write(names[0], data, first * width)
        advance(len(data))
    advance(linear.scale.nbytes)
    results = {
        names[0]: TaskResult(reader.checksum(), {names[0]: written.hexdigest()}),
        names[1]: TaskResult(stored_checksum(linear.scale), {names[1]: checksum(scale.tobytes())}),
    }
    return results, below
