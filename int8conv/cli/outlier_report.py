"""``--report-outliers``: the printing."""

from __future__ import annotations

import click

from ..runtime.measure.fallback import NetReport
from .output import table

SHOWN = 10
_CHANNELS = 4


def show_net(report: NetReport, *, err: bool = False) -> None:
    """The inputs at which the safety net took most."""
    if not report.tokens:
        click.echo("safety net: no tokens went through W8A8 with it", err=err)
        return
    caught = report.caught
    if caught:
        rows = [
            [i.input, i.values, f"{i.tokens_caught / i.tokens:.2%}",
             " ".join(f"{c}:{n}" for c, n in list(i.channels.items())[:_CHANNELS])]
            for i in caught[:SHOWN]
        ]  # fmt: skip
        table(["input", "values caught", "of tokens", "channel:values"], rows, err=err)
    click.echo(
        f"safety net: {report.values:,} values of {report.tokens:,} tokens caught at {len(caught)} of "
        f"{len(report.inputs)} inputs",
        err=err,
    )
