"""``convert_checkpoint``: from a checkpoint folder to a converted one."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError, ConvertedFormatError, SafetensorsError
from ..formats.int8.folder import open_converted
from ..formats.int8.layout import ShardLayout, plan_layout
from ..formats.int8.manifest import Manifest
from ..formats.int8.outlier_cap import CAP_SHARE
from ..formats.int8.workspace import Workspace, open_workspace
from ..progress import Progress, counted, silent
from ..runtime.devices import DeviceLike
from .journal import Journal
from .memory import DEFAULT_MAX_MEMORY
from .metadata_files import make_manifest, write_metadata_files
from .options import DEFAULT_SHARD_BYTES, ConvertOptions, Outliers
from .outliers.choose import choose
from .outliers.rule import HeavyTails, Rule
from .plan import Plan, QuantizeTask, make_plan
from .prepare import Prepared, Resources, prepare
from .report import ConvertReport, measured
from .stopwatch import Stopwatch
from .stream import TaskResult, run_tasks


def convert_checkpoint(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    outliers: Outliers = "calibrated",
    dtype: str = "float16",
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    keep: Sequence[str] = (),
    quantize: Sequence[str] = (),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    outlier_rule: Rule = "absmax",
    max_outliers: float = CAP_SHARE,
    heavy_tails: HeavyTails = "16bit",
    stats: str | os.PathLike[str] | None = None,
    force: bool = False,
    jobs: int | None = None,
    max_memory: int = DEFAULT_MAX_MEMORY,
    stream: bool = False,
    device: DeviceLike = "cpu",
    progress: Progress = silent,
) -> ConvertReport:
    """Convert a checkpoint folder to int8 (see ``formats/SPEC.md``).

    Args:
        source: a Hugging Face checkpoint folder with safetensors files, or PyTorch pickles, in F16, BF16 or F32; or the id
            of one on the hub, ``org/name`` or ``org/name@revision``.
        out: the folder to make; it appears whole or not at all.
        outliers: ``"calibrated"`` keeps the input columns with outlier activations in 16 bits, found by a short run of
            the model (by the data-free rule where the runtime does not know it); ``"data-free"`` guesses them from norms and
            weights; ``"none"`` keeps no columns and needs no run.
        dtype: ``"float16"`` or ``"bfloat16"``, for what stays in 16 bits of an F32 source.
        max_shard_bytes: payload of an output file, at most (a larger group of linears gets a file of its own).
        keep: regular expressions; linears whose path one of them matches somewhere stay in 16 bits.
        quantize: the same, for further matrices that become int8: head, embeddings.
        include: the same, for names of source tensors; the others are left out.
        exclude: the same; these are left out.
        outlier_rule: ``"absmax"``, ``"error"`` or ``"paper"`` (see ``outliers``).
        max_outliers: share of an input's columns that stay in 16 bits at most, or 16 columns if that is more; 0: none.
        heavy_tails: what W8A8 does with an input whose activations are heavy-tailed outside of its columns: ``"16bit"`` multiplies
            them in 16 bits, which is the most exact, ``"8bit"`` as all others.
        stats: a statistics file of this checkpoint (``int8conv calibrate``) instead of a short run.
        force: replace ``out`` if it is a converted folder.
        jobs: tensors to work on at once; None: one for each processor. Does not change the bytes.
        max_memory: bytes of the process while it streams; fewer workers and smaller blocks if need be. Calibration comes on
            top, with PyTorch and a block of the model in float32.
        stream: read the weights of a source on the hub over the network, and store none of them (but of safetensors files
            only, and twice with calibrated outliers: once to run the model).
        device: where linears are quantized: ``"cpu"``, or one that PyTorch has, as ``"cuda"`` (its own memory comes on top).
            Does not change the bytes.
        progress: called as the work goes on.

    Raises:
        NotFoundError, CheckpointError, SafetensorsError: the source is missing or malformed; FileChangedError where it was
            changed meanwhile.
        HubError: it cannot be had from the hub.
        UnsupportedModelError: nothing in it looks like a linear.
        CalibrationError: the model cannot be run on the calibration text.
        ConvertedFormatError: the result would be a folder that no reader opens.
        OutputError: the output exists, cannot be written, or does not fit the disk.
        ArgumentError: an option that cannot be.
    """
    start, watch = time.perf_counter(), Stopwatch()
    options = ConvertOptions(
        outliers,
        dtype,
        max_shard_bytes,
        tuple(keep),
        tuple(quantize),
        tuple(include),
        tuple(exclude),
        outlier_rule,
        max_outliers,
        heavy_tails,
    )
    resources = Resources(jobs, max_memory, str(device))
    out = Path(out)
    prepared = prepare(source, out, options, resources, stats=stats, stream=stream, force=force)
    watch.lap("open")
    with (
        open_workspace(out, force=force, source=prepared.resolved.folder) as workspace,
        closing(Journal(workspace.path, prepared.fingerprint)) as journal,
    ):
        written = _write(prepared, workspace, journal, watch, progress)
        _check_readable(workspace.folder, out)
        workspace.commit()
        watch.lap("flush")
    notes = prepared.opened.notes + written.notes + tuple(workspace.notes)
    return _report(written, notes, watch, seconds=time.perf_counter() - start)


def _check_readable(folder: Path, out: Path) -> None:
    """Raise ConvertedFormatError for a result that ``load`` would refuse, as long as it has not appeared: headers and indices only."""
    try:
        open_converted(folder)
    except (CheckpointError, SafetensorsError, ConvertedFormatError) as error:
        raise ConvertedFormatError(
            f"the result would not be readable, and is not kept: {error.problem}", file=out,
            tensor=error.tensor, expected=error.expected, found=error.found,
            hint="please report it; --exclude leaves a tensor out",
        ) from error  # fmt: skip


@dataclass(frozen=True)
class _Written:
    """What the workspace holds when it is complete."""

    plan: Plan
    layouts: list[ShardLayout]
    results: list[TaskResult]
    manifest: Manifest
    notes: tuple[str, ...]


def _write(
    prepared: Prepared,
    workspace: Workspace,
    journal: Journal,
    watch: Stopwatch,
    progress: Progress,
) -> _Written:
    """Choose the outlier columns, then stream every tensor; what an earlier attempt left is used."""
    opened, options = prepared.opened, prepared.options
    if not journal.resumed:
        workspace.clear()
    choices, calibration, notes = choose(
        opened, options, prepared.statistics, journal, prepared.source_watch, progress
    )
    watch.lap("calibrate")
    if journal.outdated:
        notes += ("an unfinished attempt had another source or options: started again",)
    plan = make_plan(opened.selection, choices, options)
    layouts = plan_layout(plan.units, max_shard_bytes=options.max_shard_bytes)
    workspace.keep_only([layout.name for layout in layouts])
    results = run_tasks(
        plan.tasks, layouts, workspace.folder, prepared.workers, journal=journal, watch=watch,
        progress=counted(progress, "convert", plan.source_bytes),
    )  # fmt: skip
    manifest = make_manifest(prepared.resolved, options, plan, results, calibration)
    with prepared.source_watch.named_errors(opened.checkpoint):
        write_metadata_files(
            workspace.folder, opened.checkpoint, options, layouts, manifest, results
        )
    prepared.source_watch.check(opened.checkpoint, plan.tasks, results)
    return _Written(plan, layouts, results, manifest, notes)


def _report(
    written: _Written, notes: tuple[str, ...], watch: Stopwatch, *, seconds: float
) -> ConvertReport:
    plan = written.plan
    return ConvertReport(
        tensors=len(plan.tasks),
        quantized=sum(isinstance(task, QuantizeTask) for task in plan.tasks),
        outlier_columns=sum(group.outliers for group in plan.inputs),
        bytes_in=plan.source_bytes,
        bytes_out=sum(layout.nbytes for layout in written.layouts),
        seconds=seconds,
        rounded=written.manifest.rounded,
        resumed=sum(result.resumed for result in written.results),
        notes=notes,
        quality=measured(plan, written.results),
        stages=dict(watch.seconds),
    )
