"""Output of ``--report-outliers``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..output import echo, table

if TYPE_CHECKING:
    from ...runtime.measure.fallback import FallbackReport

SHOWN = 10
_CHANNELS = 4


def show_fallback(report: FallbackReport, *, err: bool = False) -> None:
    """Print the inputs where the outlier fallback handled the most values."""
    if not report.tokens:
        echo("outlier fallback: not used, as no tokens were computed in W8A8 with it", err=err)
        return
    used = report.used
    if used:
        rows = [
            [i.input, i.values, f"{i.fallback_tokens / i.tokens:.2%}",
             " ".join(f"{c}:{n}" for c, n in list(i.channels.items())[:_CHANNELS])]
            for i in used[:SHOWN]
        ]  # fmt: skip
        table(["input", "values", "of tokens", "channel:values"], rows, err=err)
    echo(
        f"outlier fallback: {report.values:,} values of {report.tokens:,} tokens, at {len(used)} of "
        f"{len(report.inputs)} inputs",
        err=err,
    )
