"""``int8conv calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .output import echo, print_json, progress_bars, table

if TYPE_CHECKING:
    from ..formats.int8.stats import Stats


@click.command("calibrate")
@click.argument("src", type=click.Path(), nargs=-1, required=True)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="The statistics file to write."
)  # fmt: skip
@click.option("--merge", is_flag=True, help="SRC are statistics files, to be added up.")
@click.option(
    "--text",
    "texts",
    type=click.Path(path_type=Path),
    multiple=True,
    help="UTF-8 text to run, may be given several times; default: a built-in one of several kinds.",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    help="Of all texts, drawn as whole windows; default: all.",
)
@click.option("--context", type=click.IntRange(min=2), help="Tokens of a window; default: 256.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the drawing.")
@click.option("--device", default="cpu", show_default=True, help="Where the model runs.")
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
    """Run a text through the checkpoint SRC in its own precision and record what activations do, for 'convert --stats'.

    One block of the model is in memory at a time. With --merge, SRC are statistics files of one checkpoint instead.
    """
    from ..formats.int8.stats import STATISTICS, read_stats, write_stats
    from ..formats.outputs import check_file

    sources = [Path(each) for each in src]
    check_file(out, STATISTICS, sources)  # before any work
    if merge:
        from ..convert.outliers.collect import merge as merge_stats

        if texts or tokens or context:
            raise click.UsageError("--merge runs no model: no --text, --tokens or --context")
        stats = merge_stats([(path, read_stats(path)) for path in src])
    else:
        from ..convert.outliers.calibrate import calibrate_source

        if len(src) > 1:
            raise click.UsageError("one SRC, or --merge")
        with progress_bars("B") as progress:
            stats = calibrate_source(
                src[0],
                texts=texts,
                tokens=tokens,
                context=context,
                seed=seed,
                device=device,
                progress=lambda done, total: progress("calibrate", done, total),
            )
    write_stats(stats, out, sources)
    summary = summarize(stats)
    if as_json:
        print_json(summary)
    else:
        show(out, stats, summary)


def show(out: Path, stats: Stats, summary: dict[str, Any]) -> None:
    """A table of the inputs, and a line of what they come to."""
    table(
        ["input", "channels", "median", "largest", ">= 6.0", "16-bit columns", "fallback from"],
        [
            [name, i["channels"], f"{i['median_absmax']:.3g}", f"{i['absmax']:.3g}",
             i["channels_from_6"], i["columns"], _fallback(i["threshold"])]
            for name, i in summary["inputs"].items()
        ],
    )  # fmt: skip
    dimensions = summary["systematic_dimensions"]
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


def summarize(stats: Stats) -> dict[str, Any]:
    """What the statistics show, and what the default rule makes of them."""
    import numpy as np

    from ..convert.outliers.collect import systematic_dimensions
    from ..convert.outliers.rule import Choosing, choose_all
    from ..formats.int8.stats import LARGE

    choices = choose_all(stats, Choosing())
    return {
        "source": stats.source, "fingerprint": stats.fingerprint,
        "tokens": stats.tokens, "context": stats.context,
        "systematic_dimensions": systematic_dimensions(stats).tolist(),
        "inputs": {
            path: {
                "channels": len(found.absmax), "median_absmax": float(np.median(found.absmax)),
                "absmax": float(found.absmax.max()),
                "channels_from_6": int(np.count_nonzero(found.absmax >= LARGE)),
                "columns": len(choices[path].columns), "threshold": choices[path].threshold,
            }
            for path, found in stats.inputs.items()
        },
    }  # fmt: skip
