"""``int8conv calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .output import echo, notes, print_json, progress_bars, table
from .threads import threads_option

if TYPE_CHECKING:
    from ..convert.outliers.summary import StatsSummary


@click.command("calibrate")
@click.argument("src", type=click.Path(), nargs=-1, required=True)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="Statistics file to write."
)  # fmt: skip
@click.option("--merge", is_flag=True, help="Merge the statistics files SRC.")
@click.option(
    "--text",
    "texts",
    type=click.Path(path_type=Path),
    multiple=True,
    help="UTF-8 text file to run the model on; repeatable; default: a built-in mix of texts.",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    help="Number of tokens to use, sampled as whole windows from all texts; default: all.",
)
@click.option("--context", type=click.IntRange(min=2), help="Tokens per window; default: 256.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed for choosing windows.")
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    help="Device to run the model on: cpu, cuda or cuda:N.",
)
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    src: tuple[str, ...],
    out: Path,
    merge: bool,
    texts: tuple[Path, ...],
    tokens: int | None,
    context: int | None,
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    """Run text through the checkpoint SRC in its own precision and record activation statistics for 'convert --stats'.

    One block of the model is in memory at a time. With --merge, each SRC is a statistics file of the same checkpoint.
    """
    from ..convert.outliers.choose import RANDOM
    from ..convert.outliers.summary import summarize_stats
    from ..formats.int8.stats import STATISTICS
    from ..formats.outputs import check_file

    check_file(out, STATISTICS, map(Path, src))  # before any work
    if merge:
        from ..convert.outliers.collect import merge_files

        if texts or tokens or context:
            raise click.UsageError(
                "--merge runs no model: --text, --tokens and --context do not apply"
            )
        stats = merge_files(src, out)
    else:
        from ..convert.outliers.calibrate import calibrate

        if len(src) > 1:
            raise click.UsageError("give one SRC, or use --merge")
        with progress_bars("B") as progress:
            stats = calibrate(
                src[0], out, texts=texts, tokens=tokens, context=context, seed=seed, device=device,
                progress=progress,
            )  # fmt: skip
    notes([RANDOM] * stats.random)
    summary = summarize_stats(stats)
    if as_json:
        print_json(summary.to_json())
    else:
        show(out, summary)


def show(out: Path, summary: StatsSummary) -> None:
    """Print a table of the inputs and a summary line."""
    stats = summary.stats
    table(
        ["input", "channels", "median", "largest", ">= 6.0", "16-bit columns", "fallback from"],
        [
            [name, i.channels, f"{i.median_absmax:.3g}", f"{i.absmax:.3g}", i.channels_from_6, i.columns, _fallback(i.threshold)]
            for name, i in summary.inputs.items()
        ],
    )  # fmt: skip
    dimensions = summary.systematic_dimensions
    named = ", ".join(map(str, dimensions[:_SHOWN])) + (", ..." if len(dimensions) > _SHOWN else "")
    echo(
        "",
        f"{out}: {len(stats.inputs)} inputs over {stats.tokens:,} tokens; "
        f"{len(dimensions)} systematic outlier dimensions" + (f": {named}" if named else ""),
    )


_SHOWN = 16


def _fallback(threshold: float | None) -> str:
    if threshold is None:
        return "-"
    return f"{threshold:g}" if threshold else "all"
