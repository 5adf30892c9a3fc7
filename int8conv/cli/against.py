"""``int8conv inspect --against``: the printing."""

from __future__ import annotations

from typing import Any

from ..convert.quality import TensorQuality, check_sqnr, compare, median_sqnr
from ..formats.hub.download import resolve
from ..formats.int8.folder import ConvertedFolder
from .output import echo, progress_bars, table

SHOWN = 10


class Against:
    """A converted folder held against its source.

    Args:
        converted: the folder.
        src: its source, as the user named it.
        limit: SQNR in dB that no linear may be below.
    """

    def __init__(self, converted: ConvertedFolder, src: str, limit: float) -> None:
        self._converted, self._limit = converted, limit
        source = resolve(src)
        with progress_bars("B") as progress:
            self.qualities = compare(
                converted, source, lambda done, total: progress("compare", done, total)
            )
        self._ordered = sorted(self.qualities, key=lambda quality: quality.order)

    def to_json(self) -> dict[str, Any]:
        """Figures of every linear, in the order of the file; a figure is null where nothing was lost."""
        return {
            "min_sqnr_db": self._limit,
            "worst_sqnr_db": self._ordered[0].sqnr_db if self._ordered else None,
            "median_sqnr_db": median_sqnr(self.qualities),
            "tensors": {
                q.name: {
                    "sqnr_db": q.sqnr_db, "max_error": q.max_error,
                    "outlier_share": q.outlier_share, "below": q.order < self._limit,
                }
                for q in self.qualities
            },
        }  # fmt: skip

    def show(self) -> None:
        """The worst linears, and a line with the worst and the median."""
        if not self._ordered:
            echo("", "no int8 tensors; all others are the source's bit for bit")
            return
        echo()
        shown = self._ordered[:SHOWN]
        headers = ["tensor, the worst first", "SQNR dB", "max error", "outlier bytes"]
        headers += [f"below {self._limit:g} dB"] if any(map(self._is_low, shown)) else []
        table(headers, [self._row(quality)[: len(headers)] for quality in shown])
        worst = self._ordered[0]
        echo(
            "",
            f"{len(self._ordered)} int8 tensors: worst SQNR {_db(worst.sqnr_db)} ({worst.name}), "
            f"median {_db(median_sqnr(self.qualities))}; all else is the source's bit for bit",
        )

    def check(self) -> None:
        """Raise QualityError if a linear is below the limit."""
        check_sqnr(self._converted, self.qualities, self._limit)

    def _row(self, quality: TensorQuality) -> list[object]:
        sqnr = "exact" if quality.sqnr_db is None else f"{quality.sqnr_db:.1f}"
        share, low = f"{quality.outlier_share:.1%}", "yes" if self._is_low(quality) else ""
        return [quality.name, sqnr, f"{quality.max_error:.2e}", share, low]

    def _is_low(self, quality: TensorQuality) -> bool:
        return quality.order < self._limit


def _db(sqnr: float | None) -> str:
    return "exact" if sqnr is None else f"{sqnr:.1f} dB"
