"""``int8conv inspect --against``: the printing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .output import echo, table

if TYPE_CHECKING:
    from ..convert.compare import SourceComparison

SHOWN = 10


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


def _db(sqnr: float | None, *, unit: bool = True) -> str:
    return "exact" if sqnr is None else f"{sqnr:.1f}{' dB' if unit else ''}"
