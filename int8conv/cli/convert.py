"""``int8conv convert``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import click

from ..convert.options import ConvertOptions, Outliers
from .output import print_json, progress_bars, size, table


@contextmanager
def hint_at_interrupt() -> Iterator[None]:
    """Say that the work is not lost."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("int8conv: note: the same command goes on from here", err=True)
        raise


def parse_size(text: str) -> int:
    """Bytes with a unit, in powers of 1000: ``5GB``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)B?", text, re.IGNORECASE)
    if match is None:
        raise click.BadParameter(f"{text!r} is not a size such as 500MB or 5GB")
    return int(float(match[1]) * 1000 ** " kmgt".index(match[2].lower() or " "))


def show_preview(src: str, out: Path, options: ConvertOptions, as_json: bool) -> None:
    """The dry run's result."""
    from ..convert.preview import preview

    plan = preview(src, out, options)
    if as_json:
        print_json(plan.to_json())
        return
    rows = [[t.name, t.dtype, str(list(t.shape)), t.becomes, size(t.nbytes)] for t in plan.tensors]
    rows += [[name, "", "", f"left out: {why}", ""] for name, why in plan.skipped.items()]
    table(["tensor", "dtype", "shape", "becomes", "bytes"], rows)
    most = "at most " if options.outliers == "calibrated" else ""
    click.echo(
        f"\n{size(plan.bytes_in)} -> {most}{size(plan.bytes_out)} "
        f"({plan.bytes_out / plan.bytes_in:.2f}x) in {plan.shards} files; {size(plan.disk_free)} free"
    )


@click.command("convert")
@click.argument("src", type=click.Path())  # as it was typed: ./org/name is no hub id
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
@click.option(
    "--keep",
    multiple=True,
    metavar="REGEX",
    help="Keep linears whose path matches in 16 bits; may be given several times.",
)
@click.option(
    "--max-shard-size",
    type=parse_size,
    default="5GB",
    show_default=True,
    metavar="SIZE",
    help="Of a file's tensors, such as 500MB.",
)
@click.option("--force", is_flag=True, help="Replace OUT if it is a converted folder.")
@click.option("--jobs", type=click.IntRange(min=1), help="Tensors at once; default: processors.")
@click.option("--stream", is_flag=True, help="Read a hub's weights from there and store none.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, from headers alone.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the report, or the dry run.")
def command(
    src: str,
    out: Path,
    outliers: Outliers,
    dtype: str,
    keep: tuple[str, ...],
    max_shard_size: int,
    force: bool,
    jobs: int | None,
    stream: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Convert the checkpoint folder SRC to int8 in the new folder OUT.

    SRC may be the id of one on the hub, org/name or org/name@revision: what it needs is downloaded to the hub library's cache.

    Linears of attention and FFN become int8 with a scale for each row; embeddings, head, norms and biases stay in 16 bits.
    OUT appears whole or not at all; a conversion that was stopped goes on when the same command is run again.
    """
    from ..convert.converter import convert

    if dry_run:
        show_preview(src, out, ConvertOptions(outliers, dtype, max_shard_size, keep), as_json)
        return
    with progress_bars("B") as progress, hint_at_interrupt():
        report = convert(
            src,
            out,
            outliers=outliers,
            dtype=dtype,
            max_shard_bytes=max_shard_size,
            keep=keep,
            force=force,
            jobs=jobs,
            stream=stream,
            progress=progress,
        )
    if as_json:
        print_json(asdict(report))
        return
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
