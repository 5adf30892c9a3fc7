"""What commands print with: sizes, tables, JSON, progress."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import click

_UNITS = ("B", "kB", "MB", "GB", "TB")


def size(nbytes: float) -> str:
    """Bytes for people, in powers of 1000: ``"13.0 MB"``."""
    unit = 0
    while nbytes >= 999.95 and unit < len(_UNITS) - 1:
        nbytes /= 1000
        unit += 1
    return f"{nbytes:.1f} {_UNITS[unit]}" if unit else f"{nbytes:.0f} B"


def parse_size(text: str) -> int:
    """Bytes with a unit, in powers of 1000: ``5GB``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)B?", text, re.IGNORECASE)
    if match is None:
        raise click.BadParameter(f"{text!r} is not a size such as 500MB or 5GB")
    return int(float(match[1]) * 1000 ** " kmgt".index(match[2].lower() or " "))


def table(headers: Sequence[str], rows: Sequence[Sequence[object]], *, err: bool = False) -> None:
    """Print a table; text is left-aligned, figures right."""
    from tabulate import tabulate

    texts = [[str(cell) for cell in row] for row in rows]
    align = ["left" if _is_label(column) else "right" for column in zip(*texts, strict=True)]
    click.echo(tabulate(texts, headers, "simple", disable_numparse=True, colalign=align), err=err)


def _is_label(column: Sequence[str]) -> bool:
    return not all(cell[:1].isdigit() or cell in ("", "-") for cell in column)


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


@contextmanager
def progress_bars(unit: str) -> Iterator[Callable[[str, int, int], None]]:
    """A callback ``(stage, done, total)`` that shows a bar a stage on stderr, when that is a terminal."""
    from tqdm import tqdm

    bars: dict[str, tqdm[NoReturn]] = {}

    def update(stage: str, done: int, total: int) -> None:
        if stage not in bars:
            scaled = stage != "calibrate"  # blocks are counted one by one
            bars[stage] = tqdm(
                desc=stage, total=total, unit=unit if scaled else "block", unit_scale=scaled,
                disable=not sys.stderr.isatty(),
            )  # fmt: skip
        bars[stage].update(done - bars[stage].n)

    try:
        yield update
    finally:
        for bar in bars.values():
            bar.close()
