"""``compare``: a summary of how a converted folder differs from its source."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ArgumentError
from ..formats.hub.download import resolve
from ..formats.int8.folder import FolderLike, open_folder
from ..progress import Progress, silent
from .options import Rounding
from .quality import TensorQuality, check_sqnr, compare_tensors, median_sqnr


@dataclass(frozen=True)
class SourceComparison:
    """How faithfully a converted folder represents its source."""

    folder: Path
    tensors: tuple[TensorQuality, ...]
    """Quality of every int8 tensor, in file order."""
    same: int
    """Number of other tensors that match the source bit for bit; the config matches too."""
    rounded: dict[str, int]
    """Tensors rounded from float32 to 16 bits (for int8 tensors, their outlier columns) and the number of values changed."""
    left_out: dict[str, str]
    """Tensors of the source that are not in the folder, and why."""
    rounding: Rounding
    """How codes were chosen: ``"nearest"``, and each equals the recomputed one; or ``"compensated"``, and each is within 4 of it."""

    @property
    def worst_first(self) -> list[TensorQuality]:
        """The tensors, lowest SQNR first."""
        return sorted(self.tensors, key=lambda quality: quality.order)

    @property
    def worst_sqnr_db(self) -> float | None:
        """None if nothing was lost."""
        return self.worst_first[0].sqnr_db if self.tensors else None

    @property
    def median_sqnr_db(self) -> float | None:
        """Median over the tensors; None if nothing was lost."""
        return median_sqnr(self.tensors)

    def check(self, min_sqnr_db: float) -> None:
        """Check every tensor against a limit.

        Raises:
            QualityError: one is below it; names the worst.
        """
        check_sqnr(self.folder, self.tensors, min_sqnr_db)

    def to_json(self, min_sqnr_db: float) -> dict[str, Any]:
        """Figures for every tensor (null if nothing was lost), and what happened to everything else."""
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
            "rounding": self.rounding,
        }  # fmt: skip


def compare(
    path: FolderLike,
    source: str | os.PathLike[str],
    *,
    jobs: int | None = None,
    progress: Progress = silent,
) -> SourceComparison:
    """Compare every code (see ``SourceComparison.rounding``), row scale, outlier column and kept tensor of a converted folder with its source.

    Args:
        path: the converted folder, its hub id, or an opened folder.
        source: what it was converted from, as in ``convert_checkpoint``.
        jobs: number of tensors to process in parallel; None: one per processor.
        progress: called with the number of source bytes compared.

    Raises:
        ArgumentError: ``jobs`` is below 1.
        SourceMismatchError: the source is not the one that was converted, or a tensor is not what it gives.
        JsonFileError: the manifest's options are malformed.
        NotFoundError, HubError, CheckpointError, SafetensorsError, ConvertedFormatError: folder or source cannot be read.
    """
    if jobs is not None and jobs < 1:
        raise ArgumentError("jobs", expected="1 or more", found=jobs)
    converted = open_folder(path)
    found = compare_tensors(converted, resolve(source), progress, jobs=jobs)
    return SourceComparison(
        converted.folder, tuple(found.linears), found.same, found.rounded, found.left_out,
        found.rounding,
    )  # fmt: skip
