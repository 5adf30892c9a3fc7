"""Output of all commands: text, notes, sizes, tables, JSON, progress; options of output folders. No other module calls ``click.echo``.

Names come from untrusted checkpoints: ``echo`` lets none of their control characters reach a terminal.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from typing import NoReturn

import click

from ..errors import printable

_UNITS = ("B", "kB", "MB", "GB", "TB")


_LONGEST_NOTE = 1000


def print_what_can_be() -> None:
    """Where the terminal's encoding lacks characters, print others in their place instead of failing at them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and stream.encoding.lower().replace("-", "") != "utf8":
            stream.reconfigure(errors="replace")


def echo(*lines: object, err: bool = False, nl: bool = True) -> None:
    """Print lines, escaping control characters and line breaks; without arguments, print an empty line."""
    click.echo("\n".join(printable(str(line)) for line in lines), err=err, nl=nl)


def echo_text(text: str) -> None:
    """Print text from a model or its user as it is, without control characters on a terminal. Adds no line break."""
    if sys.stdout is not None and sys.stdout.isatty():
        text = "".join(c if c in "\n\t" or not _controls(c) else printable(c) for c in text)
    click.echo(text, nl=False)  # which flushes


def _controls(character: str) -> bool:
    return character < " " or "\x7f" <= character <= "\x9f"


def notes(texts: Sequence[str]) -> None:
    """Print notes to stderr, one line each."""
    for text in texts:
        line = " ".join(text.split())
        cut = f"{line[:_LONGEST_NOTE]}..." if len(line) > _LONGEST_NOTE else line
        echo(f"int8conv: note: {cut}", err=True)


def size(nbytes: float) -> str:
    """Bytes for humans, in powers of 1000: ``"13.0 MB"``."""
    unit = 0
    while nbytes >= 999.95 and unit < len(_UNITS) - 1:
        nbytes /= 1000
        unit += 1
    return f"{nbytes:.1f} {_UNITS[unit]}" if unit else f"{nbytes:.0f} B"


def parse_size(text: str) -> int:
    """Parse bytes with a unit, in powers of 1000: ``5GB``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)B?", text, re.IGNORECASE)
    if match is None:
        raise click.BadParameter(f"{text!r} is not a size such as 500MB or 5GB")
    return int(float(match[1]) * 1000 ** " kmgt".index(match[2].lower() or " "))


max_shard_size_option = click.option(
    "--max-shard-size",
    type=parse_size,
    default="5GB",
    show_default=True,
    metavar="SIZE",
    help="Largest size of an output file, such as 500MB.",
)
force_option = click.option(
    "--force",
    is_flag=True,
    help="Replace OUT if it is a converted folder and contains nothing else.",
)


def table(headers: Sequence[str], rows: Sequence[Sequence[object]], *, err: bool = False) -> None:
    """Print a table; text is left-aligned, numbers right-aligned."""
    from tabulate import tabulate

    texts = [[printable(str(cell)) for cell in row] for row in rows]
    align = ["left" if _is_label(column) else "right" for column in zip(*texts, strict=True)]
    titles = [printable(title) for title in headers]
    text = tabulate(texts, titles, "simple", disable_numparse=True, colalign=align)
    echo(*text.split("\n"), err=err)


def _is_label(column: Sequence[str]) -> bool:
    return not all(cell[:1].isdigit() or cell in ("", "-") for cell in column)


def print_json(value: object) -> None:
    """Print ``value`` as ASCII JSON."""
    click.echo(json.dumps(value, indent=2).replace("\x7f", "\\u007f"))


@contextmanager
def progress_bars(unit: str) -> Iterator[Callable[[str, int, int], None]]:
    """A callback ``(stage, done, total)`` that shows one progress bar per stage on stderr if that is a terminal."""
    from tqdm import tqdm

    bars: dict[str, tqdm[NoReturn]] = {}

    def update(stage: str, done: int, total: int) -> None:
        if stage not in bars:
            scaled = stage not in ("calibrate", "round")  # blocks are counted one by one
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
