"""What commands print with: text, notes, sizes, tables, JSON, progress. Nothing else here calls ``click.echo``.

Names come from checkpoints, which come from anyone: ``echo`` lets no control character of theirs reach a terminal.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import click

from ..errors import printable

_UNITS = ("B", "kB", "MB", "GB", "TB")


_LONGEST_NOTE = 1000


def echo(*lines: object, err: bool = False, nl: bool = True) -> None:
    """Print lines, with escapes for what a terminal would act on or what would begin another line; no lines: an empty one."""
    click.echo("\n".join(printable(str(line)) for line in lines), err=err, nl=nl)


def echo_text(text: str) -> None:
    """Print what a model or its user wrote, as it is; to a terminal without what moves the cursor. No line break follows."""
    if sys.stdout is not None and sys.stdout.isatty():
        text = "".join(c if c in "\n\t" or not _controls(c) else printable(c) for c in text)
    click.echo(text, nl=False)  # which flushes


def _controls(character: str) -> bool:
    return character < " " or "\x7f" <= character <= "\x9f"


def notes(texts: Sequence[str]) -> None:
    """On stderr, a line each: what is good to know, but not the result."""
    for text in texts:
        line = " ".join(text.split())
        cut = f"{line[:_LONGEST_NOTE]}..." if len(line) > _LONGEST_NOTE else line
        echo(f"int8conv: note: {cut}", err=True)


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

    texts = [[printable(str(cell)) for cell in row] for row in rows]
    align = ["left" if _is_label(column) else "right" for column in zip(*texts, strict=True)]
    titles = [printable(title) for title in headers]
    text = tabulate(texts, titles, "simple", disable_numparse=True, colalign=align)
    echo(*text.split("\n"), err=err)


def _is_label(column: Sequence[str]) -> bool:
    return not all(cell[:1].isdigit() or cell in ("", "-") for cell in column)


def print_json(value: object) -> None:
    """All of it ASCII."""
    click.echo(json.dumps(value, indent=2).replace("\x7f", "\\u007f"))


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
