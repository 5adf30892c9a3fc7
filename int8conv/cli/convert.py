"""``int8conv convert``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from ..convert.options import Outliers
from .output import progress_bars, size


@contextmanager
def hint_at_interrupt() -> Iterator[None]:
    """Say that the work is not lost."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("int8conv: note: the same command goes on from here", err=True)
        raise


@click.command("convert")
@click.argument("src", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--outliers",
    type=click.Choice(["calibrated", "none"]),
    default="calibrated",
    show_default=True,
    help="Which input columns stay in 16 bits: those that a short run of the model shows, or none.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float16", "bfloat16"]),
    default="float16",
    show_default=True,
    help="16-bit type for what stays in 16 bits of a 32-bit source.",
)
@click.option("--force", is_flag=True, help="Replace OUT if it is a converted folder.")
@click.option("--jobs", type=click.IntRange(min=1), help="Tensors at once; default: processors.")
def command(
    src: Path, out: Path, outliers: Outliers, dtype: str, force: bool, jobs: int | None
) -> None:
    """Convert the checkpoint folder SRC to int8 in the new folder OUT.

    Linears of attention and FFN become int8 with a scale for each row; embeddings, head, norms and biases stay in 16 bits.
    OUT appears whole or not at all.
    """
    from ..convert.converter import convert

    with progress_bars("B") as progress, hint_at_interrupt():
        report = convert(
            src,
            out,
            outliers=outliers,
            dtype=dtype,
            force=force,
            jobs=jobs,
            progress=progress,
        )
    if report.resumed:
        click.echo(f"int8conv: note: {report.resumed} tensors were done before", err=True)
    for note in report.notes:
        click.echo(f"int8conv: note: {note}", err=True)
    if report.rounded:
        click.echo(f"int8conv: note: {report.rounded:,} values rounded to {dtype}", err=True)
    click.echo(
        f"{out}: {report.tensors} tensors, {report.quantized} of them to int8 with "
        f"{report.outlier_columns} outlier columns; {size(report.bytes_in)} -> "
        f"{size(report.bytes_out)} ({report.ratio:.2f}x) in {report.seconds:.1f} s"
    )
