"""``int8conv inspect --against``: the printing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .output import echo, table

if TYPE_CHECKING:
    from ..convert.compare import SourceComparison

SHOWN = 10


<<<<<<< HEAD
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
            self.comparison = compare(
                converted, source, lambda done, total: progress("compare", done, total)
            )
        self.qualities = self.comparison.linears
        self._ordered = sorted(self.qualities, key=lambda quality: quality.order)

    def to_json(self) -> dict[str, Any]:
        """Figures of every linear, in the order of the file, null where nothing was lost; and what became of all else."""
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
            "same": self.comparison.same,
            "rounded": self.comparison.rounded,
            "left_out": self.comparison.left_out,
        }  # fmt: skip

    def show(self) -> None:
        """The worst linears, and a line with the worst and the median."""
        if not self._ordered:
            echo("", "no int8 tensors" + self._others())
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
            f"median {_db(median_sqnr(self.qualities))}{self._others()}",
        )

    def _others(self) -> str:
        """What became of all else."""
        found = self.comparison
        values = sum(found.rounded.values())
        if not found.rounded and not found.left_out:
            return f"; all else, {found.same} tensors and the config, is the source's bit for bit"
        text = f"; the source's bit for bit: {found.same} tensors and the config"
        if found.rounded:
            text += (
                f"; rounded from float32: {len(found.rounded)} tensors ({values:,} values changed)"
            )
        if found.left_out:
            name, why = next(iter(found.left_out.items()))
            more = f", and {len(found.left_out) - 1} more" if len(found.left_out) > 1 else ""
            text += f"; left out: {name} ({why}){more}"
        return text

    def check(self) -> None:
        """Raise QualityError if a linear is below the limit."""
        check_sqnr(self._converted, self.qualities, self._limit)

    def _row(self, quality: TensorQuality) -> list[object]:
        sqnr = "exact" if quality.sqnr_db is None else f"{quality.sqnr_db:.1f}"
        share, low = f"{quality.outlier_share:.1%}", "yes" if self._is_low(quality) else ""
        return [quality.name, sqnr, f"{quality.max_error:.2e}", share, low]

    def _is_low(self, quality: TensorQuality) -> bool:
        return quality.order < self._limit
=======
def show_comparison(compared: SourceComparison, limit: float) -> None:
    """The worst linears, and a line with the worst and the median; ``limit`` is an SQNR in dB."""
    if not compared.tensors:
        echo("", "no int8 tensors; all others are the source's bit for bit")
        return
    echo()
    ordered = compared.worst_first
    low = [quality.order < limit for quality in ordered[:SHOWN]]
    rows: list[list[object]] = [
        [q.name, _db(q.sqnr_db, unit=False), f"{q.max_error:.2e}", f"{q.outlier_share:.1%}"]
        for q in ordered[:SHOWN]
    ]
    headers = ["tensor, the worst first", "SQNR dB", "max error", "outlier bytes"]
    if any(low):
        headers.append(f"below {limit:g} dB")
        rows = [[*row, "yes" if below else ""] for row, below in zip(rows, low, strict=True)]
    table(headers, rows)
    echo(
        "",
        f"{len(ordered)} int8 tensors: worst SQNR {_db(compared.worst_sqnr_db)} ({ordered[0].name}), "
        f"median {_db(compared.median_sqnr_db)}; all else is the source's bit for bit",
    )
>>>>>>> main


def _db(sqnr: float | None, *, unit: bool = True) -> str:
    return "exact" if sqnr is None else f"{sqnr:.1f}{' dB' if unit else ''}"
