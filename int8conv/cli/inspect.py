"""``int8conv inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .output import echo, print_json, progress_bars, size, table
from .reports.against import show_comparison

if TYPE_CHECKING:
    from ..convert.compare import SourceComparison
    from ..formats.int8.folder import ConvertedFolder
    from ..formats.int8.summary import FolderSummary


@click.command("inspect")
@click.argument("path", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every tensor.")
@click.option("--tensors", is_flag=True, help="Also list every tensor.")
@click.option("--verify", is_flag=True, help="Check every byte against its checksum.")
@click.option("--against", metavar="SRC", help="Compare every tensor with the source of PATH.")
@click.option(
    "--min-sqnr",
    type=float,
    default=30,
    show_default=True,
    metavar="DB",
    help="With --against: exit with code 1 if the SQNR of an int8 tensor is lower.",
)
@click.option(
    "--plot",
    "picture",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Plot outlier channels and the error per layer to a .png or .svg file (needs matplotlib).",
)
@click.option(
    "--stats",
    type=click.Path(path_type=Path),
    help="With --plot: statistics of the source, to show the activation magnitude of every channel.",
)
def command(
    path: str,
    as_json: bool,
    tensors: bool,
    verify: bool,
    against: str | None,
    min_sqnr: float,
    picture: Path | None,
    stats: Path | None,
) -> None:
    """Show what the converted folder PATH contains: kinds, layers, outlier columns, size compared with 16 bits.

    PATH may also be a hub id (org/name or org/name@revision), which is downloaded.
    """
    from ..formats.int8.folder import open_folder
    from ..formats.int8.summary import inspect_folder

    if stats is not None and picture is None:
        raise click.UsageError("--stats needs --plot")
    if picture is not None:
        from .reports.plot import check_plot

        check_plot(picture)
    converted = open_folder(path)
    summary = inspect_folder(converted)
    verified = verify_bytes(converted) if verify else None
    compared = compare_with(converted, against) if against is not None else None
    if picture is not None:
        draw(converted, picture, stats, compared)
    if as_json:
        more = {"verified_bytes": verified} if verify else {}
        quality = {"quality": compared.to_json(min_sqnr)} if compared else {}
        print_json(summary.to_json() | more | quality)
    else:
        show(path, summary, tensors)
        if verified is not None:
            echo(f"verified: {verified:,} bytes match their checksums")
        if compared:
            show_comparison(compared, min_sqnr)
    if compared:
        compared.check(min_sqnr)


def verify_bytes(converted: ConvertedFolder) -> int:
    """Verify every byte; returns how many there are."""
    from ..formats.int8.verify import verify

    with progress_bars("B") as progress:
        return verify(converted, progress=progress)


def compare_with(converted: ConvertedFolder, source: str) -> SourceComparison:
    """Compare every tensor with the source."""
    from ..convert.compare import compare

    with progress_bars("B") as progress:
        return compare(converted, source, progress=progress)


def draw(
    converted: ConvertedFolder, picture: Path, stats: Path | None, compared: SourceComparison | None
) -> None:
    """Draw the plot, with measured errors if the folder was compared with its source."""
    from ..formats.int8.stats import read_stats
    from .reports.plot import plot

    errors = None
    if compared is not None:
        errors = {
            q.name.removesuffix(".weight"): 0.0 if q.sqnr_db is None else 10 ** (-q.sqnr_db / 20)
            for q in compared.tensors
        }
    plot(converted, picture, stats=None if stats is None else read_stats(stats), errors=errors)


def show(path: str, summary: FolderSummary, tensors: bool) -> None:
    """Print tables by kind and by layer, and of all tensors if requested."""
    echo(
        f"{path}: int8conv format 1, {summary.model_type}, from {summary.source}, by {summary.generator}",
        "",
    )
    table(
        ["kind", "dtypes", "tensors", "bytes", "16-bit bytes"],
        [
            [row.label, row.dtypes, row.tensors, size(row.nbytes), size(row.nbytes_16bit)]
            for row in [*summary.kinds, summary.total]
        ],
    )
    echo()
    table(
        ["layer", "int8 linears", "outlier columns of inputs", "bytes", "16-bit bytes"],
        [
            [
                row.label,
                row.linears,
                " ".join(f"{k}/{n}" for k, n in row.outliers) or "-",
                size(row.nbytes),
                size(row.nbytes_16bit),
            ]
            for row in summary.layers
        ],
    )
    if tensors:
        echo()
        rows = [[t.name, t.dtype, str(list(t.shape)), size(t.nbytes)] for t in summary.tensors]
        table(["tensor", "dtype", "shape", "bytes"], rows)
    echo("", f"{size(summary.total.nbytes)}, {summary.ratio:.2f}x of 16 bits")
