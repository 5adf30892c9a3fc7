"""What a conversion would do, from the source's headers alone: nothing is written, no weight is read."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..formats.hub import resolve_headers
from ..formats.layout import plan_layout
from ..runtime.architecture import Architecture
from .options import ConvertOptions
from .outliers import OutlierChoice, most_outliers
from .plan import QuantizeTask, Task, make_plan
from .source import open_source


@dataclass(frozen=True)
class PlannedTensor:
    """What becomes of one source tensor; sizes in bytes."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """In the source."""
    becomes: str
    """``"int8"``, or the 16-bit dtype that it is kept in."""
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
    """Of the shards; with calibrated outlier columns at most this."""
    shards: int
    disk_free: int
    """Where the output would be."""

    def to_json(self) -> dict[str, Any]:
        tensors = {
            t.name: {"shape": t.shape, "dtype": t.dtype, "becomes": t.becomes, "bytes": t.nbytes}
            for t in self.tensors
        }
        return {
            "tensors": tensors, "skipped": self.skipped, "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out, "shards": self.shards, "disk_free": self.disk_free,
        }  # fmt: skip


def preview(
    source: str | os.PathLike[str], out: str | os.PathLike[str], options: ConvertOptions
) -> Preview:
    """Plan the conversion of a checkpoint folder, or of one on the hub, and stop there.

    Raises:
        The errors of ``convert`` that concern the source's headers and the options.
    """
    resolved = resolve_headers(source)
    checkpoint, architecture = open_source(resolved.folder, resolved.remote)
    most = _most_outliers(architecture) if options.outliers == "calibrated" else {}
    plan = make_plan(checkpoint, architecture, most, options)
    layouts = plan_layout(plan.units, max_shard_bytes=options.max_shard_bytes)
    return Preview(
        tensors=tuple(_planned(task) for task in plan.tasks),
        skipped=plan.skipped,
        bytes_in=plan.source_bytes,
        bytes_out=sum(layout.nbytes for layout in layouts),
        shards=len(layouts),
        disk_free=shutil.disk_usage(_existing_parent(Path(out))).free,
    )


def _most_outliers(architecture: Architecture) -> dict[str, OutlierChoice]:
    choices = {}
    for first, *_ in architecture.groups():
        columns = np.arange(most_outliers(first.shape[1]), dtype=np.int32)
        choices[first.path] = OutlierChoice(columns, None)
    return choices


def _planned(task: Task) -> PlannedTensor:
    source = task.source
    becomes = "int8" if isinstance(task, QuantizeTask) else task.dtype
    return PlannedTensor(source.name, source.shape, source.dtype, becomes, source.nbytes)


def _existing_parent(path: Path) -> Path:
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path
