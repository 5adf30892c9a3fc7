"""``convert_checkpoint``: convert a checkpoint folder."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError, ConvertedFormatError, SafetensorsError
from ..formats.int8.folder import open_converted
from ..formats.int8.layout import ShardLayout, plan_layout
from ..formats.int8.manifest import Manifest
from ..formats.int8.outlier_cap import CAP_FRACTION
from ..formats.int8.workspace import Workspace, open_workspace
from ..formats.source.checkpoint import CONFIG_FILE
from ..progress import Progress, counted, silent
from ..runtime.devices import DeviceLike
from .exchange.remote_code import FILE, with_remote_code
from .journal import Journal
from .memory import DEFAULT_MAX_MEMORY
from .metadata_files import make_manifest, write_metadata_files
from .options import DEFAULT_SHARD_BYTES, ConvertOptions, Outliers, Rounding
from .outliers.choose import choose
from .outliers.rule import DEFAULT_RULE, HeavyTails, Rule
from .outliers.selection import Head
from .plan import Plan, QuantizeTask, make_plan
from .prepare import Prepared, Resources, prepare
from .report import ConvertReport, measured
from .stopwatch import Stopwatch
from .stream import TaskResult, run_tasks

if TYPE_CHECKING:
    from .rounding.second_pass import SecondPass


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
    outlier_rule: Rule = DEFAULT_RULE,
    max_outliers: float = CAP_FRACTION,
    heavy_tails: HeavyTails = "16bit",
    rounding: Rounding = "nearest",
    calibration_tokens: int | None = None,
    head: Head = "16bit",
    stats: str | os.PathLike[str] | None = None,
    force: bool = False,
    jobs: int | None = None,
    max_memory: int = DEFAULT_MAX_MEMORY,
    stream: bool = False,
    device: DeviceLike = "cpu",
    remote_code: bool = False,
    progress: Progress = silent,
) -> ConvertReport:
    """Convert a checkpoint folder to int8 (see ``formats/SPEC.md``).

    Args:
        source: a Hugging Face checkpoint folder with safetensors files or PyTorch pickles, in F64, F32, F16, BF16 or FP8; or a hub id,
            ``org/name`` or ``org/name@revision``.
        out: the folder to create; it appears complete or not at all.
        outliers: ``"calibrated"`` keeps input columns with outlier activations in 16 bits, found by a short run of the model
            (by the data-free rule if the runtime does not know the model); ``"data-free"`` estimates them from norms and
            weights; ``"none"`` keeps no columns and runs nothing.
        dtype: ``"float16"`` or ``"bfloat16"``, for the parts of an F32 source that stay in 16 bits.
        max_shard_bytes: largest payload of an output file (a larger group of linears gets a file of its own).
        keep: regular expressions; linears whose path contains a match stay in 16 bits.
        quantize: the same, for additional matrices to quantize: head, embeddings.
        include: the same, for names of source tensors; all others are left out.
        exclude: the same; tensors that match are left out.
        outlier_rule: ``"error"`` keeps the columns with the largest expected error, ``"absmax"`` those far above the median channel,
            ``"paper"`` LLM.int8()'s systematic dimensions (see docs/fidelity.md).
        max_outliers: largest fraction of an input's columns to keep in 16 bits, or 16 columns if that is more; 0: none.
        heavy_tails: how W8A8 multiplies an input whose activations are heavy-tailed outside its outlier columns: ``"16bit"``
            in 16 bits, which is most exact, ``"8bit"`` like all others.
        rounding: ``"nearest"`` rounds each weight to the nearest code; ``"compensated"`` lets the columns of a linear make up
            for each other's rounding errors (GPTQ), for activations measured by running the model on the built-in text, which
            takes longer (see docs/convert.md). Nearest is used, with a note, if the runtime does not know the model.
        head: ``"int8"`` quantizes the head as well (its input stays in 16 bits), ``"int8-tied"`` also one that is the token embedding, which
            is then looked up in int8; ``"16bit"`` keeps it.
        calibration_tokens: number of tokens of the built-in text to run the model on, in whole windows, to choose columns; None: all, some
            1,500. Compensated rounding always runs all of it.
        stats: a statistics file of this checkpoint (``int8conv calibrate``) to use instead of a short run.
        force: replace ``out`` if it is a converted folder.
        jobs: number of tensors to process in parallel; None: one per processor. Does not affect the output.
        max_memory: memory limit of the process in bytes while streaming, met with fewer workers and smaller blocks.
            Calibration needs more: PyTorch, and one block of the model in float32.
        stream: read the weights of a hub source over the network without storing them (safetensors only; read twice with
            calibrated outliers, once to run the model).
        device: device to quantize on: ``"cpu"``, or any PyTorch device such as ``"cuda"`` (which needs memory of its own).
            Does not affect the output, except for compensated codes.
        remote_code: also write the module through which transformers opens the folder with ``trust_remote_code=True``, without
            ``import int8conv.hf``.
        progress: called as the work proceeds.

    Raises:
        NotFoundError, CheckpointError, SafetensorsError: the source is missing or malformed; FileChangedError if it changed
            during the conversion.
        HubError: the source cannot be downloaded.
        UnsupportedModelError: nothing in the source looks like a linear.
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
        rounding,
        calibration_tokens,
        head,
    )
    resources = Resources(jobs, max_memory, str(device))
    out = Path(out)
    prepared = prepare(source, out, options, resources, stats=stats, stream=stream, force=force)
    watch.lap("open")
    with (
        open_workspace(out, force=force, source=prepared.resolved.folder) as workspace,
        closing(Journal(workspace.path, prepared.fingerprint)) as journal,
    ):
        written = _write(prepared, workspace, journal, watch, progress, remote_code)
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
    remote_code: bool,
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
        notes += ("an unfinished attempt had another source or options: started over",)
    plan = make_plan(opened.selection, choices, options)
    layouts = plan_layout(plan.units, max_shard_bytes=options.max_shard_bytes)
    workspace.keep_only([layout.name for layout in layouts])
    second_pass = _second_pass(prepared, plan, progress)
    if options.rounding == "compensated":
        notes += _notes_on(second_pass, prepared.statistics is not None)
    if second_pass is not None:
        calibration = (calibration or {}) | {"rounding": second_pass.about}
    results = run_tasks(
        plan.tasks, layouts, workspace.folder, prepared.workers, journal=journal, watch=watch,
        progress=counted(progress, "convert", plan.source_bytes), chosen=second_pass,
    )  # fmt: skip
    manifest = make_manifest(prepared.resolved, options, plan, results, calibration)
    checkpoint, code = opened.checkpoint, {}
    if remote_code:
        known = opened.architecture is not None
        config, code[FILE] = with_remote_code(checkpoint.config, known, CONFIG_FILE)
        checkpoint = replace(checkpoint, config=config)
    with prepared.source_watch.named_errors(opened.checkpoint):
        write_metadata_files(
            workspace.folder, checkpoint, options, layouts, manifest, results, code
        )
    prepared.source_watch.check(opened.checkpoint, plan.tasks, results)
    return _Written(plan, layouts, results, manifest, notes)


def _second_pass(prepared: Prepared, plan: Plan, progress: Progress) -> SecondPass | None:
    """What chooses codes for activations, if that was requested and the model can be run."""
    opened = prepared.opened
    if prepared.options.rounding == "nearest" or opened.architecture is None:
        return None
    from .rounding.second_pass import SecondPass  # needs torch

    return SecondPass(
        opened.checkpoint, opened.architecture, opened.selection, plan, prepared.workers.device,
        progress=progress,
    )  # fmt: skip


def _notes_on(second_pass: SecondPass | None, statistics: bool) -> tuple[str, ...]:
    if second_pass is None:
        return ("compensated rounding has to run the model: nearest codes instead",)
    notes = []
    if statistics:
        notes.append("statistics choose columns; compensated rounding runs the built-in text")
    if second_pass.random:
        notes.append("the source has no usable tokenizer: rounded for random tokens; --rounding nearest needs none")  # fmt: skip
    return tuple(notes)


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
