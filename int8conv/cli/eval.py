"""``int8conv eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..runtime.dtypes import CACHE_BYTES
from .gpu.compiling import note_compilations
from .output import echo, print_json, progress_bars, table
from .threads import threads_option

if TYPE_CHECKING:
    from ..runtime.measure.evaluate import Evaluation


@click.command("eval")
@click.argument("path", type=click.Path())
@click.option(
    "--text", type=click.Path(path_type=Path), required=True, help="UTF-8 text file to evaluate on."
)
@click.option("--against", metavar="SRC", help="Source of PATH to compare with.")
@click.option(
    "--mode", type=click.Choice(["w8a8", "w8a16"]), default="w8a8", show_default=True,
    help="Activations in 8 or 16 bits.",
)  # fmt: skip
@click.option(
    "--kv-cache", type=click.Choice(list(CACHE_BYTES)),
    help="Dtype of the KV cache to simulate for PATH; default: the dtype of the activations.",
)  # fmt: skip
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    help="cpu, cuda (PyTorch's current GPU) or cuda:N.",
)
@click.option("--window", type=click.IntRange(min=2), help="Tokens per window; default: 512.")
@click.option(
    "--stride",
    type=click.IntRange(min=1),
    help="Tokens from the start of one window to the start of the next; default: --window.",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=2),
    help="Number of tokens to use from the start of the text; default: all.",
)
@click.option(
    "--outlier-fallback/--no-outlier-fallback",
    default=True,
    show_default=True,
    help="In W8A8 on a CPU, multiply outlier activations in 16 bits; a GPU only counts them.",
)
@click.option(
    "--report-outliers", is_flag=True, help="Show which values the outlier fallback handled."
)
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    path: str,
    text: Path,
    against: str | None,
    mode: str,
    kv_cache: str | None,
    device: str,
    window: int | None,
    stride: int | None,
    tokens: int | None,
    outlier_fallback: bool,
    report_outliers: bool,
    as_json: bool,
) -> None:
    """Measure the perplexity of PATH (a converted folder, or a source in float32) on a text; with --against, also its
    divergence from the source.

    Memory holds one block of one model at a time; on a GPU, the whole converted model and one block of its source.
    """
    from ..runtime.measure.evaluate import evaluate

    note_compilations(device)
    with progress_bars("it") as progress:
        result = evaluate(
            path,
            text,
            against=against,
            mode=mode,  # type: ignore[arg-type]
            outlier_fallback=outlier_fallback,
            kv_cache=kv_cache,
            device=device,
            window=window,
            stride=stride,
            tokens=tokens,
            progress=progress,
        )
    if as_json:
        print_json(result.to_json())
        return
    show(Path(path).name, result)
    if report_outliers and result.outlier_fallback is not None:
        from .reports.outlier_report import show_fallback

        show_fallback(result.outlier_fallback)


def show(name: str, result: Evaluation) -> None:
    """Print the results, with those of the source if there is one."""
    dtype = "" if result.dtype == "float32" else f", {result.dtype}"
    cache = "" if result.kv_cache is None else f", {result.kv_cache} KV cache"
    rows: list[list[object]] = [
        [f"perplexity, {result.mode or 'source'}{dtype}{cache}", f"{result.perplexity:.4f}"]
    ]
    compared = result.against
    if compared is not None:
        rows += [
            ["perplexity, source", f"{compared.perplexity:.4f}"],
            ["ratio", f"{compared.ratio:.5f}"],
            ["KL divergence, mean", f"{compared.kl_mean:.3e} nats"],
            ["KL divergence, worst", f"{compared.kl_worst:.3e} nats at token {compared.worst_position}"],
            ["same most likely token", f"{compared.top1:.2%}"],
        ]  # fmt: skip
    table(["", name], rows)
    if compared is not None:
        echo()
        table(
            ["layer", "relative RMS error of output"],
            [[e.layer, f"{e.relative_rms:.3%}"] for e in compared.layers],
        )
    echo(
        "",
        f"{result.scored:,} of {result.tokens:,} tokens scored, windows of {result.window} every "
        f"{result.stride} tokens; text {result.text}",
    )
