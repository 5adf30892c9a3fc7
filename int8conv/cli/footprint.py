"""``int8conv footprint``."""

from __future__ import annotations

from pathlib import Path

import click

from .output import print_json, size, table


@click.command("footprint")
@click.argument("path", type=click.Path())
@click.option("--context", type=click.IntRange(min=1), help="Positions; default: all of the model.")
@click.option(
    "--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Sequences."
)
@click.option(
    "--dtype",
    type=click.Choice(["float16", "bfloat16", "float32"]),
    default="float16",
    show_default=True,
    help="Of activations and KV cache.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(path: str, context: int | None, batch: int, dtype: str, as_json: bool) -> None:
    """Predict the memory that PATH (a converted folder, or a source) needs, against 16 bits; reads headers only.

    PATH may be the id of one on the hub, org/name or org/name@revision, which is downloaded.
    """
    from ..runtime.footprint import predict_footprint

    footprint = predict_footprint(path, context=context, batch=batch, dtype=dtype)
    if as_json:
        print_json(footprint.to_json())
        return
    rows = [[f"- {kind}", size(nbytes), ""] for kind, nbytes in footprint.weights.items()]
    weights = sum(footprint.weights.values())
    cache, activations = size(footprint.kv_cache), size(footprint.activations)
    table(
        ["", Path(path).name, "fp16"],
        [
            ["weights", size(weights), size(footprint.weights_16bit)],
            *rows,
            [f"KV cache ({footprint.batch} x {footprint.context}, {dtype})", cache, cache],
            ["activations (one pass, estimate)", activations, activations],
            ["total", size(footprint.total), size(footprint.total_16bit)],
            ["ratio", f"{footprint.total / footprint.total_16bit:.2f}x", "1.00x"],
        ],
    )
