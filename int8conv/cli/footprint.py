"""``int8conv footprint``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ..errors import UnsupportedModelError
from ..runtime.dtypes import CACHE_BYTES, FLOAT_BYTES
from .output import echo, notes, parse_size, print_json, size, table

if TYPE_CHECKING:
    from ..runtime.measure.footprint import Footprint, Predictor

_CONTEXTS: Final = (512, 2048, 8192, 32768, 131072)
_BATCHES: Final = (1, 4, 16, 64)


@click.command("footprint")
@click.argument("path", type=click.Path())
@click.option(
    "--context",
    type=click.IntRange(min=1),
    help="Number of positions per sequence; default: the model's maximum.",
)
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Number of sequences.")  # fmt: skip
@click.option("--device", help="cpu, cuda or cuda:N; default: cpu, or cuda with --vram.")
@click.option(
    "--dtype", type=click.Choice(list(FLOAT_BYTES)), help="Dtype of activations; default: float32 on a CPU, float16 on a GPU."
)  # fmt: skip
@click.option(
    "--kv-cache",
    type=click.Choice(list(CACHE_BYTES)),
    help="Dtype of the KV cache; default: --dtype.",
)
@click.option("--mode", type=click.Choice(["w8a8", "w8a16"]), help="Activations in 8 or 16 bits; default: chosen by the number of tokens.")  # fmt: skip
@click.option("--tensor-parallel", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Predict for one of N ranks, as vLLM splits the model.")  # fmt: skip
@click.option("--unconverted", is_flag=True, help="Predict for the source itself instead of its converted form.")  # fmt: skip
@click.option(
    "--vram", type=parse_size, metavar="SIZE",
    help="Available memory, such as 24GB: report whether it fits, and the largest context and batch that do.",
)  # fmt: skip
@click.option(
    "--table",
    "show_table",
    is_flag=True,
    help="Also print totals for common context lengths and batch sizes.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    path: str, context: int | None, batch: int, device: str | None, vram: int | None, show_table: bool, as_json: bool,
    unconverted: bool, **options: Any,  # checked by click
) -> None:  # fmt: skip
    """Predict the memory that PATH needs, compared with 16 bits; reads headers only.

    PATH is a converted folder, a source (predicted as it would be converted), a bare config.json of a known family or a
    folder with only that, or a hub id of any of these (org/name or org/name@revision).
    """
    from ..runtime.measure.footprint import lone_config, open_predictor

    device = device or ("cpu" if vram is None else "cuda")
    try:
        predictor = open_predictor(path, device=device, convert=not unconverted, **options)
    except UnsupportedModelError as error:
        split = options["tensor_parallel"] > 1
        if split or lone_config(Path(path)) is not None:  # not even weights
            raise
        _show_weights_alone(path, error, vram, convert=not unconverted, as_json=as_json)
        return
    footprint = predictor.at(context, batch)
    grid = _grid(predictor) if show_table else None
    fits = None if vram is None else _fits(predictor, footprint, vram)
    if as_json:
        more = {"vram": fits} if fits else {}
        print_json(footprint.to_json() | more | ({"table": grid} if grid else {}))
        return
    _show(Path(path).name, footprint)
    if fits:
        echo("", *_answer(footprint, fits))
    if grid:
        echo("", "total by context and batch")
        table(
            ["context", *(f"batch {n}" for n in _BATCHES)],
            [[row["context"], *(size(n) for n in row["totals"].values())] for row in grid],
        )


def _show(name: str, footprint: Footprint) -> None:
    """Print the parts, next to those of the same model in 16 bits."""
    f = footprint
    of_16_bits = (f.weights_16bit, f.kv_cache_16bit, f.activations_16bit)
    estimated = " (at most)" if f.estimated else ""
    rows = [
        [f"- {kind}{estimated if kind == 'outlier columns' else ''}", size(n), ""]
        for kind, n in f.weights.items()
    ]
    parts = [size(n) for n in of_16_bits]
    name = f"{name}, converted" if f.estimated else name
    table(
        ["", name if f.ranks == 1 else f"{name}, 1 of {f.ranks} ranks", "fp16"],
        [
            ["weights", size(sum(f.weights.values())), parts[0]],
            *rows,
            [f"KV cache ({f.batch} x {f.context}, {f.kv_dtype})", size(f.kv_cache), parts[1]],
            [f"activations ({f.dtype})", size(f.activations), parts[2]],
            ["total", size(f.total), size(f.total_16bit)],
            ["ratio", f"{f.total / f.total_16bit:.2f}x", "1.00x"],
        ],
    )


def _show_weights_alone(
    path: str, why: UnsupportedModelError, vram: int | None, *, convert: bool, as_json: bool
) -> None:
    """Show the weights of a model that the runtime does not know, and note what is unknown."""
    from ..convert.weights_alone import weights_alone

    found = weights_alone(path, convert=convert)
    if as_json:
        fits = {"vram": {"memory": vram, "fits": None if found.total <= vram else False}} if vram else {}  # fmt: skip
        print_json(found.to_json() | fits)
    else:
        name = Path(path).name
        rows = [[f"- {kind}", size(nbytes), ""] for kind, nbytes in found.weights.items()]
        unknown = ["unknown", "unknown"]
        table(
            ["", f"{name}, converted" if found.estimated else name, "fp16"],
            [
                ["weights", size(found.total), size(found.weights_16bit)], *rows,
                ["KV cache", *unknown], ["activations", *unknown],
            ],
        )  # fmt: skip
        if vram is not None:
            left = size(abs(vram - found.total))
            fits_or_not = (
                f"fit in {size(vram)}, {left} left for the rest" if found.total <= vram
                else f"do not fit in {size(vram)}, {left} short"
            )  # fmt: skip
            echo("", f"the weights alone {fits_or_not}")
    notes([
        f"the runtime cannot run this model ({why.problem}): the sizes of KV cache and activations are unknown"
    ])  # fmt: skip


def _fits(predictor: Predictor, footprint: Footprint, memory: int) -> dict[str, Any]:
    """Whether it fits, and the largest context and batch that do."""
    return {
        "memory": memory,
        "fits": footprint.total <= memory,
        "largest_context": predictor.largest_context(memory, 1),
        "largest_context_at_batch": predictor.largest_context(memory, footprint.batch),
        "largest_batch": predictor.largest_batch(memory, footprint.context),
    }


def _answer(footprint: Footprint, fits: dict[str, Any]) -> list[str]:
    asked = f"{footprint.batch} x {footprint.context} positions"
    memory = size(fits["memory"])
    left = abs(fits["memory"] - footprint.total)
    first = (
        f"fits in {memory}, {size(left)} left: {asked}"
        if fits["fits"]
        else f"does not fit in {memory}, {size(left)} short: {asked}"
    )
    if not fits["largest_context"]:
        return [first, "no context fits at all"]
    contexts = f"largest context: {fits['largest_context']}"
    if footprint.batch > 1:
        contexts += f" at batch 1, {fits['largest_context_at_batch'] or 'none'} at batch {footprint.batch}"  # fmt: skip
    batch = f"largest batch at {footprint.context} positions: {fits['largest_batch'] or 'none'}"
    return [first, contexts, batch]


def _grid(predictor: Predictor) -> list[dict[str, Any]]:
    """Totals by context (those of ``_CONTEXTS`` within the model's maximum, and the maximum) and batch."""
    most = predictor.config.max_positions
    contexts = [c for c in _CONTEXTS if c < most] + [most]
    return [
        {"context": c, "totals": {str(b): predictor.at(c, b).total for b in _BATCHES}}
        for c in contexts
    ]
