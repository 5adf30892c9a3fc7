"""``int8conv import``."""

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


@click.command("import")
@click.argument("src")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--dtype", type=click.Choice(["float16", "bfloat16"]), default="float16", show_default=True,
    help="16-bit type for matrices of SRC in float32.",
)  # fmt: skip
@max_shard_size_option
@force_option
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    src: str, out: Path, dtype: str, max_shard_size: int, force: bool, as_json: bool
) -> None:
    """Create the converted folder OUT from SRC, which another quantizer has made int8: a folder, or a hub id.

    SRC is a checkpoint of bitsandbytes (load_in_8bit) or compressed-tensors (W8A8, int-quantized). Its codes are taken over; it
    has no outlier columns.
    """
    from ..convert.exchange.importing import import_checkpoint

    with progress_bars("B") as progress:
        report = import_checkpoint(
            src, out, dtype=dtype, max_shard_bytes=max_shard_size, force=force, progress=progress
        )
    if as_json:
        print_json(asdict(report))
        return
    notes(report.notes)
    echo(
        f"{out}: {report.tensors} tensors, {report.quantized} int8 linears; "
        f"{size(report.bytes_out)} in {report.seconds:.1f} s"
    )
