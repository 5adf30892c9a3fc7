"""``int8conv bench``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .gpu.compiling import note_compilations
from .output import echo, print_json, progress_bars, size, table
from .threads import threads_option

if TYPE_CHECKING:
    from ..runtime.measure.bench import Benchmark

_COUNT = click.IntRange(min=1)


@click.command("bench")
@click.argument("path", type=click.Path())
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    help="cpu, cuda (PyTorch's current GPU) or cuda:N.",
)
@click.option(
    "--mode", type=click.Choice(["w8a8", "w8a16"]),
    help="Activations in 8 or 16 bits; default: chosen by the number of tokens.",
)  # fmt: skip
@click.option("--dtype", help="Dtype of activations and KV cache; default: as for generate.")
@click.option(
    "--prompt-tokens",
    type=_COUNT,
    default=128,
    show_default=True,
    help="Prompt tokens per sequence.",
)
@click.option(
    "--new-tokens", type=_COUNT, default=32, show_default=True, help="New tokens per sequence."
)
@click.option("--batch", type=_COUNT, default=1, show_default=True, help="Number of sequences.")
@click.option(
    "--runs",
    type=_COUNT,
    default=3,
    show_default=True,
    help="Number of runs; the medians are printed.",
)
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(path: str, as_json: bool, **options: Any) -> None:  # checked by click
    """Measure how fast PATH (a converted folder, or a source in its own precision) loads, processes a prompt, and decodes.

    The prompt consists of random tokens. Decoding speed is compared with measured memory bandwidth, and peak memory with the
    prediction of 'int8conv footprint'.

    PATH may also be a hub id (org/name or org/name@revision), which is downloaded.
    """
    from ..runtime.measure.bench import benchmark

    note_compilations(options["device"])
    with progress_bars("it") as progress:
        result = benchmark(path, progress=progress, **options)
    if as_json:
        print_json(result.to_json())
    else:
        _print(result)


def _print(result: Benchmark) -> None:
    moved = "copy" if result.device_type == "cuda" else "read"
    fraction = f"{result.weight_speed / result.bandwidth:.1%} of a measured {moved} of {size(result.bandwidth)}/s"
    cached = "" if result.cached is None else f", {result.cached:.0%} already in the page cache"
    sent = result.moved
    rows = [
        ["prefill", f"{result.prefill_speed:.1f} tok/s", ""],
        ["decode", f"{result.decode_speed:.1f} tok/s", ""],
        ["- weights per step", size(result.weight_bytes), ""],
        ["- weights per second", size(result.weight_speed), fraction],
        ["load", f"{result.load_seconds:.2f} s", f"{size(result.file_bytes)}{cached}"],
        *([["- to the GPU", f"{size(sent.speed)}/s", f"{sent.seconds:.2f} s"]] if sent else []),
        ["load and first token", f"{result.first_token_seconds:.2f} s", "imports not counted"],
        *_memory(result),
    ]
    table(["", Path(result.path).name, ""], rows)
    echo(
        "",
        f"{result.batch} x ({result.prompt_tokens} prompt + {result.new_tokens} new tokens), median of {result.runs} runs; "
        f"{result.mode or 'mode by tokens'}, {result.dtype}, {result.device}",
    )


def _memory(result: Benchmark) -> list[list[str]]:
    use, predicted = result.memory, result.predicted.total
    if use.peak is None:
        return [["footprint's prediction", size(predicted), ""]]
    parts = "PyTorch's allocations"
    if use.anonymous is not None and use.mapped is not None:
        parts = f"{size(use.anonymous)} anonymous, {size(use.mapped)} mapped"
    rows = [
        ["peak memory", size(use.peak), parts],
        ["- footprint's prediction", size(predicted), f"measured is {use.peak / predicted:.2f}x that"],
    ]  # fmt: skip
    if use.device is not None:
        rows.append(["- on the device", size(use.device), "including reserve, graphs and kernels"])
    return rows
