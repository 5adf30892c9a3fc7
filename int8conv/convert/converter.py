"""``convert``: from a checkpoint folder to a converted folder."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from .. import __version__
from ..errors import ArgumentError, NotFoundError
from ..formats.checkpoint import CONFIG_FILE, INDEX_FILE, Checkpoint
from ..formats.checksum import checksum
from ..formats.hub import Source, resolve
from ..formats.json_file import dump_json
from ..formats.layout import ShardLayout, plan_layout
from ..formats.manifest import FileRecord, Manifest
from ..formats.names import MANIFEST_FILE, QUANT_METHOD, VERSION, is_padding
from ..formats.workspace import check_replaceable, open_workspace
from ..formats.writer import write_file
from ..runtime.architecture import Architecture
from .journal import Journal
from .options import DEFAULT_SHARD_BYTES, ConvertOptions, Outliers
from .outliers import OutlierChoice, choose_outliers
from .plan import Plan, QuantizeTask, make_plan
from .source import open_source
from .stream import TaskResult, run_tasks

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, units done so far, and units in all."""


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion did; sizes in bytes."""

    tensors: int
    """Source tensors read."""
    quantized: int
    """Of them, linears that became int8."""
    outlier_columns: int
    """Columns kept in 16 bits, over all inputs."""
    bytes_in: int
    """Of the source's tensors."""
    bytes_out: int
    """Of the shards."""
    seconds: float
    rounded: int
    """Values of an F32 source that rounding to 16 bits changed."""
    resumed: int = 0
    """Tensors that an earlier, unfinished attempt had done."""
    notes: tuple[str, ...] = ()
    """What the user should know."""

    @property
    def ratio(self) -> float:
        return self.bytes_out / self.bytes_in


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    outliers: Outliers = "calibrated",
    dtype: str = "float16",
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    keep: Sequence[str] = (),
    force: bool = False,
    jobs: int | None = None,
    stream: bool = False,
    progress: Progress | None = None,
) -> ConvertReport:
    """Convert a checkpoint folder to int8 (see ``formats/SPEC.md``).

    Args:
        source: a Hugging Face checkpoint folder with safetensors files, or PyTorch pickles, in F16, BF16 or F32; or the id
            of one on the hub, ``org/name`` or ``org/name@revision``.
        out: the folder to make; it appears whole or not at all.
        outliers: ``"calibrated"`` keeps the input columns with outlier activations in 16 bits, found by a short run of
            the model; ``"none"`` keeps no columns and needs no run.
        dtype: ``"float16"`` or ``"bfloat16"``, for what stays in 16 bits of an F32 source.
        max_shard_bytes: payload of an output file, at most (a larger group of linears gets a file of its own).
        keep: regular expressions; linears whose path one of them matches somewhere stay in 16 bits.
        force: replace ``out`` if it is a converted folder.
        jobs: tensors to work on at once; None: one for each processor. Does not change the bytes.
        stream: read the weights of a source on the hub over the network, and store none of them (but of safetensors files
            only, and twice with calibrated outliers: once to run the model).
        progress: called as the work goes on.

    Raises:
        NotFoundError, CheckpointError, SafetensorsError: the source is absent or malformed.
        HubError: it cannot be had from the hub.
        UnsupportedModelError: a family, or a feature of it, that is not known.
        CalibrationError: the model cannot be run on the calibration text.
        OutputError: the output exists, cannot be written, or does not fit the disk.
        ArgumentError: an option that cannot be.
    """
    start = time.perf_counter()
    options = ConvertOptions(outliers, dtype, max_shard_bytes, tuple(keep))
    if jobs is not None and jobs < 1:
        raise ArgumentError("jobs", expected="1 or more", found=jobs)
    tell = progress or (lambda stage, done, total: None)
    out = Path(out)
    check_replaceable(out, force=force)  # before any work
    resolved = resolve(source, stream=stream)
    if stream and resolved.revision is None:
        raise ArgumentError("stream is for sources on the hub", file=source, expected="org/name",
                            found="a local folder")  # fmt: skip
    checkpoint, architecture = open_source(resolved.folder, resolved.remote)
    make_plan(checkpoint, architecture, {}, options)  # refuse a bad source before calibrating on it
    with open_workspace(out, force=force) as workspace:
        journal = Journal(workspace.path, _fingerprint(checkpoint, options))
        if not journal.resumed:
            workspace.clear()
        choices, calibration, notes = _choose(checkpoint, architecture, options, journal, tell)
        if journal.outdated:
            notes += ("an unfinished attempt had another source or options: started again",)
        plan = make_plan(checkpoint, architecture, choices, options)
        layouts = plan_layout(plan.units, max_shard_bytes=options.max_shard_bytes)
        results = run_tasks(
            plan.tasks, layouts, workspace.folder, journal=journal,
            jobs=jobs or os.cpu_count() or 1,
            progress=_counted(tell, "convert", plan.source_bytes),
        )  # fmt: skip
        manifest = _manifest(resolved, options, plan, results, calibration)
        _write_small_files(workspace.folder, checkpoint, options, layouts, manifest, results)
        workspace.commit()
    return ConvertReport(
        tensors=len(plan.tasks),
        quantized=sum(isinstance(task, QuantizeTask) for task in plan.tasks),
        outlier_columns=sum(group.outliers for group in plan.inputs),
        bytes_in=plan.source_bytes,
        bytes_out=sum(layout.nbytes for layout in layouts),
        seconds=time.perf_counter() - start,
        rounded=manifest.rounded,
        resumed=sum(result.resumed for result in results),
        notes=notes,
    )


def _fingerprint(checkpoint: Checkpoint, options: ConvertOptions) -> str:
    """Changes with the options, the release, and the source's config, headers, file sizes and times of change."""
    files = {str(t.file): t.file for t in checkpoint.tensors.values()}
    identity = {
        "generator": __version__,
        "options": asdict(options),
        "source": str(checkpoint.folder.resolve()),
        "config": checkpoint.config,
        "files": {name: file.stamp() for name, file in files.items()},
        "tensors": [[t.name, t.dtype, t.shape, t.offset] for t in checkpoint.tensors.values()],
    }
    return checksum(dump_json(identity))


def _choose(
    checkpoint: Checkpoint,
    architecture: Architecture,
    options: ConvertOptions,
    journal: Journal,
    tell: Progress,
) -> tuple[dict[str, OutlierChoice], dict[str, Any] | None, tuple[str, ...]]:
    """The outlier columns of each input, how they were found, and notes for the user; from the journal if it has them."""
    if options.outliers == "none":
        return {}, None, ()
    if "outliers" not in journal.entries:
        from .calibrate import calibrate  # needs torch

        calibration = calibrate(
            checkpoint, architecture, lambda done, total: tell("calibrate", done, total)
        )
        found = {path: choose_outliers(absmax) for path, absmax in calibration.absmax.items()}
        entry = {
            "choices": {path: choice.to_json() for path, choice in found.items()},
            "calibration": calibration.record(),
            "notes": calibration.notes,
        }
        journal.record("outliers", entry)
    recorded = journal.entries["outliers"]
    choices = {path: OutlierChoice.from_json(v) for path, v in recorded["choices"].items()}
    return choices, recorded["calibration"], tuple(recorded["notes"])


def _counted(tell: Progress, stage: str, total: int) -> Callable[[int], None]:
    done = 0
    lock = threading.Lock()  # workers report from their own threads

    def add(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            tell(stage, done, total)

    return add


def _manifest(
    source: Source,
    options: ConvertOptions,
    plan: Plan,
    results: list[TaskResult],
    calibration: dict[str, Any] | None,
) -> Manifest:
    tensors = {
        task.source.name: {
            "dtype": task.source.dtype,
            "shape": list(task.source.shape),
            "xxh3_128": result.source_checksum,
        }
        for task, result in zip(plan.tasks, results, strict=True)
    }
    return Manifest(
        generator=f"int8conv {__version__}",
        source={"id": source.id, "revision": source.revision, "tensors": tensors},
        options=asdict(options),
        calibration=calibration,
        inputs=plan.inputs,
        rounded=sum(result.rounded for result in results),
        skipped=plan.skipped,
    )


def _write_small_files(
    staging: Path,
    checkpoint: Checkpoint,
    options: ConvertOptions,
    layouts: list[ShardLayout],
    manifest: Manifest,
    results: list[TaskResult],
) -> None:
    """Everything but the shards; the manifest last."""
    section = {"quant_method": QUANT_METHOD, "version": VERSION, "outliers": options.outliers}
    section["dtype"] = options.dtype
    files = {CONFIG_FILE: dump_json(checkpoint.config | {"quantization_config": section})}
    files |= dict(_copied_files(checkpoint.folder))
    weight_map = {
        t.name: layout.name for layout in layouts for t in layout.tensors if not is_padding(t.name)
    }
    total = sum(layout.nbytes - len(layout.header) for layout in layouts)
    files[INDEX_FILE] = dump_json({"metadata": {"total_size": total}, "weight_map": weight_map})
    records = {name: FileRecord(len(data), checksum(data)) for name, data in files.items()}
    sums = {name: value for result in results for name, value in result.checksums.items()}
    for layout in layouts:
        tensors = {t.name: sums[t.name] for t in layout.tensors if not is_padding(t.name)}
        records[layout.name] = FileRecord(
            layout.nbytes, checksum(layout.header), len(layout.header), tensors
        )
    files[MANIFEST_FILE] = dump_json(replace(manifest, files=records).to_json())
    for name, data in files.items():
        write_file(staging / name, data)


_COPIED_SUFFIXES: Final = {".json", ".txt", ".model", ".jinja", ".tiktoken"}
_COPIED_PREFIXES: Final = ("LICENSE", "NOTICE", "USE_POLICY")


def _copied_files(folder: Path) -> list[tuple[str, bytes]]:
    """Tokenizer, generation and licence files, as they are."""
    copied = []
    for path in sorted(folder.iterdir()):
        name = path.name
        wanted = path.suffix in _COPIED_SUFFIXES or name.startswith(_COPIED_PREFIXES)
        own = name in (CONFIG_FILE, MANIFEST_FILE) or name.endswith(".index.json")
        if wanted and not own and path.is_file():
            try:
                copied.append((name, path.read_bytes()))
            except OSError as error:
                raise NotFoundError(f"cannot be read: {error.strerror}", file=path) from error
    return copied
