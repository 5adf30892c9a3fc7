"""Preview of a conversion from the source's headers alone: nothing is written, no weight is read."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..formats.hub.download import resolve_headers
from ..formats.int8.layout import plan_layout
from ..formats.int8.outlier_cap import most_outliers
from ..host import processors
from .memory import DEFAULT_MAX_MEMORY, plan_workers
from .options import ConvertOptions
from .outliers.rule import OutlierChoice
from .outliers.selection import Group
from .plan import Task, make_plan
from .source import OpenedSource, open_source


@dataclass(frozen=True)
class PlannedTensor:
    """What happens to one source tensor; sizes in bytes."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """In the source."""
    becomes: str
    """``"int8"``, or the 16-bit dtype that it is kept in."""
    kind: str
    """The reason: the kind of its module, or that it matches no rule."""
    nbytes: int
    """In the source."""


@dataclass(frozen=True)
class Preview:
    """The plan of a conversion; sizes in bytes."""

    tensors: tuple[PlannedTensor, ...]
    skipped: dict[str, str]
    """Tensors that would be left out, and why."""
    bytes_in: int
    bytes_out: int
    """Size of the shards; an upper bound with calibrated outlier columns."""
    shards: int
    disk_free: int
    """Free space where the output would be."""
    jobs: int
    """Number of tensors in parallel that the memory limit allows."""
    calibration_bytes: int
    """Size of the largest block in float32, which calibration needs; 0 without calibration."""
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        values["tensors"] = {t.pop("name"): t for t in values["tensors"]}
        return values


def preview(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    options: ConvertOptions,
    *,
    jobs: int | None = None,
    max_memory: int = DEFAULT_MAX_MEMORY,
) -> Preview:
    """Plan the conversion of a checkpoint folder or hub id without carrying it out.

    Raises:
        The errors of ``convert_checkpoint`` about the source's headers and the options.
    """
    resolved = resolve_headers(source)
    opened = open_source(resolved, options, headers_only=bool(resolved.remote))
    calibrated = options.outliers == "calibrated" and opened.architecture is not None
    columns = most_columns(opened, options) if options.outliers != "none" else {}
    plan = make_plan(opened.selection, columns, options)
    workers = plan_workers(plan, jobs or processors(), max_memory)
    layouts = plan_layout(plan.units, max_shard_bytes=options.max_shard_bytes)
    return Preview(
        tensors=tuple(_planned(task) for task in plan.tasks),
        skipped=plan.skipped,
        bytes_in=plan.source_bytes,
        bytes_out=sum(layout.nbytes for layout in layouts),
        shards=len(layouts),
        disk_free=shutil.disk_usage(_existing_parent(Path(out))).free,
        jobs=workers.jobs,
        calibration_bytes=_largest_block(opened) if calibrated else 0,
        notes=opened.notes,
    )


def most_columns(opened: OpenedSource, options: ConvertOptions) -> dict[str, OutlierChoice]:
    """As many outlier columns as each input may have at most."""
    choices = {}
    for group in (item for item in opened.selection.items if isinstance(item, Group)):
        most = most_outliers(group.linears[0].weight.shape[1], options.max_outliers)
        choices[group.input] = OutlierChoice(np.arange(most, dtype=np.int32), None)
    return choices


def _largest_block(opened: OpenedSource) -> int:
    layers: Counter[int | None] = Counter()
    for module in opened.architecture.modules if opened.architecture else ():
        layers[module.layer] += 4 * prod(module.shape)
    del layers[None]
    return max(layers.values(), default=0)


def _planned(task: Task) -> PlannedTensor:
    source = task.source
    return PlannedTensor(
        source.name, source.shape, source.dtype, task.becomes, task.kind, source.nbytes
    )


def _existing_parent(path: Path) -> Path:
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path
