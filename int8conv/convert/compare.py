"""``compare``: a converted folder beside its source, summed up."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ArgumentError
from ..formats.hub.download import resolve
from ..formats.int8.folder import FolderLike, open_folder
from ..progress import Progress, silent
from .quality import TensorQuality, check_sqnr, compare_tensors, median_sqnr


@dataclass(frozen=True)
class SourceComparison:
    """How well a converted folder stands for its source."""

    folder: Path
    tensors: tuple[TensorQuality, ...]
    """Of every int8 tensor, in the order of the file."""
    same: int
    """Other tensors that are the source's bit for bit; the config is too."""
    rounded: dict[str, int]
    """Tensors rounded from float32 to 16 bits (of int8 ones, their outlier columns), and how many values that changed."""
    left_out: dict[str, str]
    """Tensors of the source that the folder does not have, and why."""

    @property
    def worst_first(self) -> list[TensorQuality]:
        """The tensors, those of the lowest SQNR first."""
        return sorted(self.tensors, key=lambda quality: quality.order)

    @property
    def worst_sqnr_db(self) -> float | None:
        """None where nothing was lost."""
        return self.worst_first[0].sqnr_db if self.tensors else None

    @property
    def median_sqnr_db(self) -> float | None:
        """Over the tensors; None where nothing was lost."""
        return median_sqnr(self.tensors)

    def check(self, min_sqnr_db: float) -> None:
        """Hold every tensor to a limit.

        Raises:
            QualityError: one is below; names the worst.
        """
        check_sqnr(self.folder, self.tensors, min_sqnr_db)

    def to_json(self, min_sqnr_db: float) -> dict[str, Any]:
        """Figures of every tensor, null where nothing was lost; and what became of all else."""
        return {
            "min_sqnr_db": min_sqnr_db,
            "worst_sqnr_db": self.worst_sqnr_db,
            "median_sqnr_db": self.median_sqnr_db,
            "tensors": {
                q.name: {
                    "sqnr_db": q.sqnr_db, "max_error": q.max_error,
                    "outlier_share": q.outlier_share, "below": q.order < min_sqnr_db,
                }
                for q in self.tensors
            },
            "same": self.same,
            "rounded": self.rounded,
            "left_out": self.left_out,
        }  # fmt: skip


def compare(
    path: FolderLike,
    source: str | os.PathLike[str],
    *,
    jobs: int | None = None,
    progress: Progress = silent,
) -> SourceComparison:
    """Hold every code, row scale, outlier column and kept tensor of a converted folder against its source.

    Args:
        path: the converted folder, its id on the hub, or one that is opened.
        source: what it should have been converted from, as in ``convert_checkpoint``.
        jobs: tensors to work on at once; None: one per processor.
        progress: called with the source's bytes that are compared.

    Raises:
        ArgumentError: ``jobs`` is below 1.
        SourceMismatchError: the source is not the one that was converted, or a tensor is not what it gives.
        JsonFileError: the manifest's options are malformed.
        NotFoundError, HubError, CheckpointError, SafetensorsError, ConvertedFormatError: one of the two cannot be read.
    """
    if jobs is not None and jobs < 1:
        raise ArgumentError("jobs", expected="1 or more", found=jobs)
    converted = open_folder(path)
    found = compare_tensors(converted, resolve(source), progress, jobs=jobs)
    return SourceComparison(
        converted.folder, tuple(found.linears), found.same, found.rounded, found.left_out
    )
