"""``int8conv adopt``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from .output import (
    echo,
    force_option,
    max_shard_size_option,
    notes,
    print_json,
    progress_bars,
    size,
)


@click.command("adopt")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@max_shard_size_option
@force_option
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(folder: Path, out: Path, max_shard_size: int, force: bool, as_json: bool) -> None:
    """Create the converted folder OUT from FOLDER, which was saved by transformers (save_pretrained).

    FOLDER has the int8 tensors and their groups, but no manifest, index or layout. Codes, scales and outlier columns are copied bit
    for bit.
    """
    from ..convert.exchange.adopt import adopt

    with progress_bars("B") as progress:
        report = adopt(folder, out, max_shard_bytes=max_shard_size, force=force, progress=progress)
    if as_json:
        print_json(asdict(report))
        return
    notes(report.notes)
    echo(
        f"{out}: {report.tensors} tensors, {report.quantized} int8 linears with {report.outlier_columns} outlier columns; "
        f"{size(report.bytes_out)} in {report.seconds:.1f} s"
    )
