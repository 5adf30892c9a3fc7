"""Everything that a conversion checks and opens before it writes anything."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from .. import __version__
from ..errors import ArgumentError
from ..formats.hub.download import Source, resolve
from ..formats.int8.stats import Stats, read_stats
from ..formats.json_file import dump_json
from ..formats.outputs import check_apart, check_folder
from ..formats.safetensors.checksum import checksum, checksum_range
from ..formats.safetensors.storage import LocalFile
from ..formats.source.checkpoint import Checkpoint
from ..host import processors
from ..runtime.devices import find_torch_device
from .memory import plan_workers
from .options import ConvertOptions
from .outliers.collect import check_source
from .plan import make_plan
from .source import OpenedSource, open_source
from .stream import Workers
from .watch import SourceWatch


@dataclass(frozen=True)
class Resources:
    """Machine resources for a conversion; they do not affect the output."""

    jobs: int | None
    """Number of tensors to process in parallel; None: one per processor."""
    max_memory: int
    """Memory limit of the process in bytes while streaming."""
    device: str
    """Device to quantize on."""


@dataclass(frozen=True)
class Prepared:
    """A source that can be converted as requested."""

    resolved: Source
    opened: OpenedSource
    options: ConvertOptions
    statistics: Stats | None
    """None: calibrate if the options say so."""
    workers: Workers
    source_watch: SourceWatch
    """Started before the source was opened."""
    fingerprint: str
    """Depends on everything that determines the output; an attempt with another fingerprint is not resumed."""


def prepare(
    source: str | os.PathLike[str],
    out: Path,
    options: ConvertOptions,
    resources: Resources,
    *,
    stats: str | os.PathLike[str] | None,
    stream: bool,
    force: bool,
) -> Prepared:
    """Refuse what cannot be converted, before any work is done.

    Raises:
        The errors of ``convert_checkpoint`` about the options, the source's headers and the output.
    """
    statistics = None if stats is None else read_stats(stats)
    _check_options(options, resources, stats)
    check_apart(out, Path(source))
    check_folder(out, force=force)
    resolved = resolve(source, stream=stream)
    check_apart(out, resolved.folder)
    if stream and resolved.revision is None:
        raise ArgumentError("stream needs a source on the hub", file=source, expected="org/name",
                            found="a local folder")  # fmt: skip
    source_watch = SourceWatch(resolved.folder)
    opened = open_source(resolved, options)
    if statistics is not None:
        groups = opened.architecture.groups() if opened.architecture else ()
        inputs = {first.path: first.shape[1] for first, *_ in groups}
        check_source(statistics, opened.checkpoint, inputs, stats)
    plan = make_plan(opened.selection, {}, options)  # refuse a bad source before calibrating on it
    workers = plan_workers(plan, resources.jobs or processors(), resources.max_memory)
    workers = replace(workers, device=resources.device)
    fingerprint = _fingerprint(opened.checkpoint, options, stats)
    return Prepared(resolved, opened, options, statistics, workers, source_watch, fingerprint)


def _check_options(
    options: ConvertOptions, resources: Resources, stats: str | os.PathLike[str] | None
) -> None:
    if stats is not None and options.outliers != "calibrated":
        raise ArgumentError("stats need calibrated outliers", expected="outliers calibrated",
                            found=options.outliers)  # fmt: skip
    if resources.jobs is not None and resources.jobs < 1:
        raise ArgumentError("jobs", expected="1 or more", found=resources.jobs)
    if resources.device != "cpu":  # the CPU needs no torch
        find_torch_device(resources.device)


def _fingerprint(
    checkpoint: Checkpoint, options: ConvertOptions, stats: str | os.PathLike[str] | None
) -> str:
    """Depends on the options, the statistics, the release, and the source's config, tokenizer, headers and file stamps."""
    files = {str(t.file): t.file for t in checkpoint.tensors.values()}
    tokenizer = [p for p in checkpoint.folder.iterdir() if p.name.startswith("tokenizer")]
    files |= {str(path): LocalFile(path) for path in tokenizer if path.is_file()}
    identity = {
        "generator": __version__,
        "options": asdict(options),
        "stats": None if stats is None else checksum_range(Path(stats)),
        "source": os.fsencode(checkpoint.folder.resolve()).hex(),
        "config": checkpoint.config,
        "files": sorted([os.fsencode(name).hex(), file.stamp()] for name, file in files.items()),
        "tensors": [[t.name, t.dtype, t.shape, t.offset] for t in checkpoint.tensors.values()],
    }
    return checksum(dump_json(identity))
