"""``int8conv chat``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from io import TextIOWrapper
from typing import Any

import click

from .generating import check_text, generation_options, load_model
from .output import echo, echo_text


@click.command("chat")
@click.argument("path", type=click.Path())
@click.option("--system", help="System message, sent before the first message.")
@generation_options(1024)
def command(path: str, system: str | None, **options: Any) -> None:  # checked by click
    """Chat with PATH (a converted folder, or a source in its own precision): each line is a message; replies are streamed.

    The conversation is formatted with the checkpoint's chat template and kept in the KV cache. Ctrl-D ends it. Options that are
    not given default to the checkpoint's generation_config.json.

    PATH may also be a hub id (org/name or org/name@revision), which is downloaded.
    """
    from ..runtime.chat import Chat

    if system is not None:
        check_text(system, "the system message")
    chat = Chat(load_model(path, options), system=system, **options)
    try:
        for line in _lines():
            if line.strip():
                chat.say(check_text(line, "stdin"), on_text=_show)
                echo()
    except KeyboardInterrupt:
        echo()
        raise


def _show(text: str) -> None:
    echo_text(text)


def _lines() -> Iterator[str]:
    """Messages: at a terminal with a prompt and line editing, otherwise the lines of stdin."""
    if sys.stdin is None:  # closed
        return
    if not sys.stdin.isatty():
        for line in sys.stdin.buffer:
            yield line.decode("utf-8", "surrogateescape").rstrip("\r\n")
        return
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # gives input() line editing and history
    with contextlib.suppress(EOFError):
        while True:
            yield input("> ")
    echo()
