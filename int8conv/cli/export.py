"""``int8conv export``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .output import echo, max_shard_size_option, notes, print_json, progress_bars, size

if TYPE_CHECKING:
    from ..convert.exchange.export import Target


@click.command("export")
@click.argument("out")
@click.argument("dest", type=click.Path(path_type=Path))
@click.option(
    "--to", type=click.Choice(["dense", "compressed-tensors", "gguf"]), required=True,
    help="Layout to write: a plain checkpoint of the dequantized weights, a W8A8 one for vLLM and transformers, or GGUF for llama.cpp.",
)  # fmt: skip
@click.option(
    "--dtype", type=click.Choice(["float16", "bfloat16", "float32"]),
    help="Dtype of a dense checkpoint or of GGUF's matrices.  [default: the one that the config names; Q8_0]",
)  # fmt: skip
@click.option(
    "--fold-outliers", is_flag=True,
    help="For compressed-tensors: quantize linears with outlier columns once more, without; prints the cost.",
)  # fmt: skip
@max_shard_size_option
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    out: str, dest: Path, to: Target, dtype: str | None, fold_outliers: bool, max_shard_size: int, as_json: bool,
) -> None:  # fmt: skip
    """Write the converted folder OUT (or a hub id) as DEST, a checkpoint for other tools.

    Every byte of OUT is verified first. DEST appears complete or not at all; nothing is replaced. For --to gguf, OUT is the source, a
    checkpoint that is not converted, and DEST a file.
    """
    from ..convert.exchange.export import export_checkpoint

    with progress_bars("B") as progress:
        report = export_checkpoint(
            out, dest, to=to, dtype=dtype, fold_outliers=fold_outliers,
            max_shard_bytes=max_shard_size, progress=progress,
        )  # fmt: skip
    if as_json:
        print_json(asdict(report))
        return
    notes(report.notes)
    how = f"linears dequantized to {report.dtype}" if report.dtype else "int8 linears"
    how = f"matrices in {report.dtype or 'Q8_0'}" if to == "gguf" else how
    echo(
        f"{dest}: {report.tensors} tensors, {report.linears} {how}; "
        f"{size(report.bytes_out)} in {report.seconds:.1f} s"
    )
    lossy = [(db, path) for path, db in report.folded.items() if db is not None]
    if lossy:
        worst, path = min(lossy)
        echo(
            f"outlier columns of {len(report.folded)} linears folded: SQNR {worst:.1f} dB ({path}) to {max(lossy)[0]:.1f} dB"
        )
