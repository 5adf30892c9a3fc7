"""``int8conv convert``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from .output import (
    echo,
    force_option,
    max_shard_size_option,
    notes,
    parse_size,
    print_json,
    progress_bars,
    size,
    table,
)
from .threads import threads_option

if TYPE_CHECKING:
    from ..convert.preview import Preview
    from ..convert.report import ConvertReport


@contextmanager
def hint_at_interrupt() -> Iterator[None]:
    """On Ctrl-C, say that the work is not lost."""
    try:
        yield
    except KeyboardInterrupt:
        notes(["run the same command again to resume"])
        raise


def show_preview(plan: Preview) -> None:
    """Print the result of a dry run."""
    rows = [
        [t.name, t.dtype, str(list(t.shape)), t.becomes, t.kind, size(t.nbytes)]
        for t in plan.tensors
    ]
    rows += [[name, "", "", "left out", why, ""] for name, why in plan.skipped.items()]
    table(["tensor", "dtype", "shape", "becomes", "as", "bytes"], rows)
    notes(plan.notes)
    most = "at most " if plan.calibration_bytes else ""
    echo(
        "",
        f"{size(plan.bytes_in)} -> {most}{size(plan.bytes_out)} "
        f"({plan.bytes_out / max(plan.bytes_in, 1):.2f}x) in {plan.shards} files; "
        f"{size(plan.disk_free)} free; {plan.jobs} tensors in parallel"
        + (f"; calibration needs {size(plan.calibration_bytes)}" if plan.calibration_bytes else ""),
    )


def show_report(out: Path, report: ConvertReport, dtype: str, verbose: bool) -> None:
    """Print what was done, in one line; details go to stderr."""
    if report.resumed:
        notes([f"resumed: {report.resumed} tensors were already done"])
    notes(report.notes)
    if report.rounded:
        notes([f"{report.rounded:,} values rounded to {dtype}"])
    for path, sqnr in report.flagged[:_SHOWN]:
        notes([f"{path}: SQNR {sqnr:.1f} dB, see 'int8conv inspect --against'"])
    if verbose:
        show_quality(report)
        stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in report.stages.items())
        echo(f"time, summed over all workers: {stages}", "")
    echo(
        f"{out}: {report.tensors} tensors, {report.quantized} of them to int8 with "
        f"{report.outlier_columns} outlier columns; {size(report.bytes_in)} -> "
        f"{size(report.bytes_out)} ({report.ratio:.2f}x) in {report.seconds:.1f} s"
    )


def show_quality(report: ConvertReport) -> None:
    """Print the least exact linears."""
    lossy = [(path, q, q.sqnr_db) for path, q in report.quality.items() if q.sqnr_db is not None]
    worst = sorted(lossy, key=lambda x: x[2])[:_SHOWN]
    table(
        ["least exact linears", "SQNR dB", "max error", "outlier bytes"],
        [[p, f"{db:.1f}", f"{q.max_error:.2g}", f"{q.outlier_share:.1%}"] for p, q, db in worst],
    )
    echo()


_SHOWN: Final = 10
"""Linears named individually."""


@click.command("convert")
@click.argument("src", type=click.Path())  # as typed: ./org/name is not a hub id
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--outliers",
    type=click.Choice(["calibrated", "data-free", "none"]),
    default="calibrated",
    show_default=True,
    help="Input columns to keep in 16 bits: measured by running the model, estimated from norms and weights, or none.",
)
@click.option(
    "--stats",
    type=click.Path(path_type=Path),
    help="Statistics of SRC from 'int8conv calibrate', to use instead of a short run on a built-in text.",
)
@click.option(
    "--outlier-rule",
    type=click.Choice(["error", "absmax", "paper"]),
    default="error",
    show_default=True,
    help="Keep columns with the largest expected error, columns far above the median channel, or LLM.int8()'s systematic dimensions.",
)
@click.option(
    "--max-outliers",
    type=click.FloatRange(0, 1),
    default=0.01,
    show_default=True,
    metavar="FRACTION",
    help="Largest fraction of an input's columns to keep in 16 bits (at least 16 columns); 0: none, rely on the outlier fallback.",
)
@click.option(
    "--heavy-tails",
    type=click.Choice(["16bit", "8bit"]),
    default="16bit",
    show_default=True,
    help="In W8A8, keep activations of heavy-tailed inputs in 16 bits (most exact), or quantize them like all others.",
)
@click.option(
    "--rounding",
    type=click.Choice(["nearest", "compensated"]),
    default="nearest",
    show_default=True,
    help="Round each weight to the nearest code, or let columns make up for each other's errors (GPTQ): closer to the source, slower.",
)
@click.option(
    "--calibration-tokens",
    type=click.IntRange(min=1),
    help="Number of tokens of the built-in text to run the model on; default: all, some 1,500.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float16", "bfloat16"]),
    default="float16",
    show_default=True,
    help="16-bit dtype for tensors of a 32-bit source that are not quantized.",
)
@click.option(
    "--keep",
    multiple=True,
    metavar="REGEX",
    help="Keep linears whose path matches in 16 bits; repeatable.",
)
@click.option(
    "--quantize",
    multiple=True,
    metavar="REGEX",
    help="Also quantize the head, embeddings or other matrices whose path matches; repeatable.",
)
@click.option(
    "--head",
    type=click.Choice(["16bit", "int8", "int8-tied"]),
    default="16bit",
    show_default=True,
    help="Also quantize the head, and with int8-tied one that is the token embedding, whose rows are then looked up in int8.",
)
@click.option(
    "--include",
    multiple=True,
    metavar="REGEX",
    help="Convert only tensors whose name matches; repeatable.",
)
@click.option(
    "--exclude",
    multiple=True,
    metavar="REGEX",
    help="Leave out tensors whose name matches; repeatable.",
)
@max_shard_size_option
@force_option
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="Number of tensors to process in parallel; default: one per processor that this process may use.",
)
@threads_option
@click.option(
    "--max-memory",
    type=parse_size,
    default="256MB",
    show_default=True,
    metavar="SIZE",
    help="Memory limit while streaming; calibration needs more.",
)
@click.option(
    "--device", default="cpu", show_default=True, help="Device to quantize on: cpu, cuda or cuda:N."
)
@click.option("--stream", is_flag=True, help="Stream weights from the hub without storing them.")
@click.option(
    "--remote-code",
    is_flag=True,
    help="Add a module through which transformers opens OUT with trust_remote_code=True, without 'import int8conv.hf'.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be done; reads headers only.")
@click.option("--json", "as_json", is_flag=True, help="Print the report, or the dry run, as JSON.")
@click.option(
    "-v", "--verbose", is_flag=True, help="Show the time per stage and the least exact linears."
)
def command(
    src: str,
    out: Path,
    force: bool,
    jobs: int | None,
    max_memory: int,
    stream: bool,
    stats: Path | None,
    device: str,
    remote_code: bool,
    dry_run: bool,
    as_json: bool,
    verbose: bool,
    max_shard_size: int,
    **choices: Any,  # checked by click
) -> None:
    """Convert the checkpoint folder SRC to int8 in the new folder OUT.

    SRC may also be a hub id (org/name or org/name@revision); the required files are downloaded to the hub library's cache.

    Linear layers of attention and FFN become int8 with one scale per row; embeddings, head (without --head), norms and biases stay in 16 bits.
    OUT appears complete or not at all; to resume an interrupted conversion, run the same command again.
    """
    from ..convert.converter import convert_checkpoint
    from ..convert.options import ConvertOptions
    from ..convert.preview import preview

    choices["max_shard_bytes"] = max_shard_size
    if dry_run:
        options = ConvertOptions(**choices)
        plan = preview(src, out, options, jobs=jobs, max_memory=max_memory)
        if as_json:
            print_json(plan.to_json())
        else:
            show_preview(plan)
        return
    with progress_bars("B") as progress, hint_at_interrupt():
        report = convert_checkpoint(
            src,
            out,
            force=force,
            jobs=jobs,
            max_memory=max_memory,
            stream=stream,
            stats=stats,
            device=device,
            remote_code=remote_code,
            progress=progress,
            **choices,
        )
    if as_json:
        print_json(asdict(report))
    else:
        show_report(out, report, choices["dtype"], verbose)
