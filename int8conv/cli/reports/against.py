"""Output of ``int8conv inspect --against``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...formats.int8.names import MOST_STEPS
from ..output import echo, table

if TYPE_CHECKING:
    from ...convert.compare import SourceComparison

SHOWN = 10


def show_comparison(compared: SourceComparison, limit: float) -> None:
    """Print the linears, worst first, and a summary line; ``limit`` is an SQNR in dB."""
    if not compared.tensors:
        echo("", "no int8 tensors" + _others(compared))
        return
    echo()
    ordered = compared.worst_first
    low = [quality.order < limit for quality in ordered[:SHOWN]]
    rows: list[list[object]] = [
        [q.name, _db(q.sqnr_db, unit=False), f"{q.max_error:.2e}", f"{q.outlier_share:.1%}"]
        for q in ordered[:SHOWN]
    ]
    headers = ["tensor, worst first", "SQNR dB", "max error", "outlier bytes"]
    if any(low):
        headers.append(f"below {limit:g} dB")
        rows = [[*row, "yes" if below else ""] for row, below in zip(rows, low, strict=True)]
    table(headers, rows)
    echo(
        "",
        f"{len(ordered)} int8 tensors: worst SQNR {_db(compared.worst_sqnr_db)} ({ordered[0].name}), "
        f"median {_db(compared.median_sqnr_db)}{_codes(compared)}{_others(compared)}",
    )


def _codes(compared: SourceComparison) -> str:
    """How far codes may be from the nearest ones."""
    if compared.rounding == "nearest":
        return ""
    return f"; compensated codes, all within {MOST_STEPS} steps of the nearest ones"


def _others(compared: SourceComparison) -> str:
    """What happened to everything else."""
    rounded, left_out = compared.rounded, compared.left_out
    if not rounded and not left_out:
        return f"; {compared.same} other tensors and the config match the source bit for bit"
    text = f"; bit-exact: {compared.same} other tensors and the config"
    if rounded:
        values = sum(rounded.values())
        text += f"; rounded from float32: {len(rounded)} tensors ({values:,} values changed)"
    if left_out:
        name, why = next(iter(left_out.items()))
        more = f", and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        text += f"; left out: {name} ({why}){more}"
    return text


def _db(sqnr: float | None, *, unit: bool = True) -> str:
    return "exact" if sqnr is None else f"{sqnr:.1f}{' dB' if unit else ''}"
