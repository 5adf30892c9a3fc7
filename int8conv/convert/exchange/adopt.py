"""``adopt``: create a converted folder from one saved by transformers, which has no manifest, index or layout."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...errors import CompanionError, JsonFileError, NotConvertedError
from ...formats.hub.download import Source
from ...formats.int8.folder import open_converted
from ...formats.int8.layout import TensorSpec, Unit, plan_layout
from ...formats.int8.manifest import InputGroup, check_version
from ...formats.int8.names import KINDS, QUANT_METHOD, SCALE, WEIGHT, is_padding
from ...formats.int8.section import GROUPS, SECTION, Group, read_groups
from ...formats.int8.workspace import open_workspace
from ...formats.outputs import check_apart, check_folder
from ...formats.safetensors.stored import StoredTensor
from ...formats.source.checkpoint import CONFIG_FILE, Checkpoint, open_checkpoint
from ...host import processors
from ...progress import Progress, counted, silent
from ..memory import DEFAULT_MAX_MEMORY, plan_workers
from ..metadata_files import make_manifest, write_metadata_files
from ..options import DEFAULT_SHARD_BYTES, ConvertOptions
from ..plan import KeepTask, Plan, kept_dtype
from ..report import ConvertReport
from ..stream import run_tasks
from ..watch import SourceWatch


def adopt(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    force: bool = False,
    progress: Progress = silent,
) -> ConvertReport:
    """Create a converted folder from one saved by transformers (``model.save_pretrained``).

    Codes, row scales and outlier columns are copied bit for bit; what is no linear is treated as in a conversion, so that an embedding that
    was widened to float32 is rounded to 16 bits again.

    Args:
        source: a folder with int8 tensors, and their groups in ``quantization_config``.
        out: the folder to create; it appears complete or not at all.
        max_shard_bytes: largest payload of an output file.
        force: replace ``out`` if it is a converted folder.
        progress: called as the work proceeds.

    Raises:
        NotConvertedError: the config does not name int8conv.
        JsonFileError: groups are missing or malformed.
        UnknownVersionError: this release does not read the format version.
        MissingTensorError, CompanionError: groups and tensors do not match.
        NotFoundError, CheckpointError, SafetensorsError, OutputError: as for ``convert_checkpoint``.
    """
    start, source, out = time.perf_counter(), Path(source), Path(out)
    check_apart(out, source)
    check_folder(out, force=force)
    watch = SourceWatch(source)
    checkpoint = open_checkpoint(source)
    groups, options = _read_config(checkpoint, max_shard_bytes)
    plan = _plan(checkpoint, groups, options)
    workers = plan_workers(plan, processors(), DEFAULT_MAX_MEMORY)
    layouts = plan_layout(plan.units, max_shard_bytes=max_shard_bytes)
    with open_workspace(out, force=force, source=source) as workspace:
        workspace.clear()
        results = run_tasks(
            plan.tasks, layouts, workspace.folder, workers,
            progress=counted(progress, "adopt", plan.source_bytes),
        )  # fmt: skip
        manifest = make_manifest(
            Source(source, source.absolute().name), options, plan, results, None
        )
        with watch.named_errors(checkpoint):
            write_metadata_files(workspace.folder, checkpoint, options, layouts, manifest, results)
        watch.check(checkpoint, plan.tasks, results)
        open_converted(workspace.folder)
        workspace.commit()
    return ConvertReport(
        tensors=len(plan.tasks),
        quantized=sum(len(group.linears) for group in groups),
        outlier_columns=sum(group.outliers for group in groups),
        bytes_in=plan.source_bytes,
        bytes_out=sum(layout.nbytes for layout in layouts),
        seconds=time.perf_counter() - start,
        rounded=manifest.rounded,
        notes=checkpoint.notes + tuple(workspace.notes),
    )


def _read_config(
    checkpoint: Checkpoint, max_shard_bytes: int
) -> tuple[tuple[Group, ...], ConvertOptions]:
    """The groups and options in the section."""
    file = checkpoint.folder / CONFIG_FILE
    section = checkpoint.config.get(SECTION)
    if not isinstance(section, dict) or section.get("quant_method") != QUANT_METHOD:
        raise NotConvertedError(
            "not an int8conv model", file=file, expected=f"quant_method '{QUANT_METHOD}' in {SECTION}",
            found=section.get("quant_method") if isinstance(section, dict) else None,
        )  # fmt: skip
    check_version(section.get("version"), file)
    groups = read_groups(section, file)
    if groups is None:
        raise JsonFileError(f"no '{GROUPS}' in {SECTION}", file=file,
                            hint="save the model again with this release of int8conv.hf")  # fmt: skip
    told: dict[str, Any] = {
        name: section[name] for name in ("outliers", "dtype") if name in section
    }
    return groups, ConvertOptions(**told, max_shard_bytes=max_shard_bytes)


def _plan(checkpoint: Checkpoint, groups: Sequence[Group], options: ConvertOptions) -> Plan:
    """All tensors unchanged, those of groups in runs, in the natural order of names."""
    places = {path: group for group in groups for path in group.linears}
    tensors = {name: t for name, t in checkpoint.tensors.items() if not is_padding(name)}
    _check_grouped(tensors, places)
    tasks: list[KeepTask] = []
    units: list[Unit] = []
    inputs: list[InputGroup] = []
    done = set[str]()
    for name in sorted(tensors, key=_natural):
        if name in done:
            continue
        path, _, kind = name.rpartition(".")
        group = places.get(path) if kind in KINDS else None
        if group is None:
            kept = tensors[name]
            task = KeepTask(name, kept, kept_dtype(name, kept, options.half), "other")
            tasks.append(task)
            units.append(((TensorSpec(name, task.dtype, kept.shape),),))
            continue
        runs = list(_runs(checkpoint, group))
        members = [tensor for run in runs for tensor in run]
        done.update(tensor.name for tensor in members)
        tasks += [KeepTask(t.name, t, t.dtype, "linear") for t in members]
        units.append(
            tuple(tuple(TensorSpec(t.name, t.dtype, t.shape) for t in run) for run in runs)
        )
        shape = members[0].shape
        in_features = shape[1] if len(shape) > 1 else 0  # which the folder's reader refuses
        inputs.append(InputGroup(group.linears, in_features, group.outliers, group.threshold))
    return Plan(tuple(tasks), tuple(units), tuple(inputs), {})


def _check_grouped(tensors: dict[str, StoredTensor], places: dict[str, Group]) -> None:
    for name, tensor in tensors.items():
        path, _, kind = name.rpartition(".")
        if (kind == SCALE or (kind == WEIGHT and tensor.dtype == "I8")) and path not in places:
            raise CompanionError(f"is in none of the {GROUPS} of {SECTION}", file=tensor.file, tensor=name)  # fmt: skip


def _runs(checkpoint: Checkpoint, group: Group) -> Iterator[list[StoredTensor]]:
    """What a group has of each kind; what is optional may be missing of all, or of some, which the folder's reader refuses."""
    optional = KINDS[2:] if group.outliers == 0 else KINDS[4:]
    for kind in KINDS:
        names = [f"{path}.{kind}" for path in group.linears]
        run = [
            checkpoint.tensor(name)
            for name in names
            if kind not in optional or name in checkpoint.tensors
        ]
        if run:
            yield run


def _natural(name: str) -> list[tuple[int, str]]:
    """Layer 2 before layer 10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]
