"""``int8conv chat``."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import click

from .generating import (
    check_text,
    generation_options,
    load_model,
    pop_template_options,
    read_text,
    template_options,
)
from .output import echo, echo_text, notes

if TYPE_CHECKING:
    from ..runtime.chat import Chat
    from ..runtime.generate.generation import Generation

_CONTINUED: Final = "\\"


@click.command("chat")
@click.argument("path", type=click.Path())
@template_options
@click.option("--lines", is_flag=True, help="Treat each line of piped stdin as a message.")
@click.option("--load", "loaded", type=click.Path(), help="Continue the conversation in this file.")  # fmt: skip
@click.option("--save", type=click.Path(), help="Save the conversation to this file after each reply.")  # fmt: skip
@generation_options(1024)
def command(
    path: str, lines: bool, loaded: str | None, save: str | None,
    **options: Any,  # checked by click
) -> None:  # fmt: skip
    """Chat with PATH (a converted folder, or a source in its own precision); replies are streamed.

    At a terminal, each line is a message; a backslash at the end continues it on the next line. Ctrl-C ends a reply, Ctrl-D the
    conversation. Otherwise, all of stdin is one message or, with --lines, each of its lines.

    The conversation is formatted with the checkpoint's chat template and kept in the KV cache; when the context is full, the oldest
    turns are dropped. Options that are not given default to the checkpoint's generation_config.json.

    PATH may also be a hub id (org/name or org/name@revision), which is downloaded.
    """
    from ..formats.outputs import check_file
    from ..runtime.chat import CONVERSATION, Chat

    if save is not None:
        check_file(Path(save), CONVERSATION)  # before a reply that could not be kept
    template = pop_template_options(options)
    chat = Chat(load_model(path, options), **template, **options)
    if loaded is not None:
        chat.load(loaded)
    try:
        for message in _messages(lines):
            if message.strip():
                _reply(chat, check_text(message, "stdin"))
                if save is not None:
                    chat.save(save)
    except KeyboardInterrupt:
        echo()
        raise


def _reply(chat: Chat, message: str) -> None:
    """Stream a reply; an interrupted one is also part of the conversation."""
    dropped = chat.dropped
    interrupted = _Interrupted()
    with chat.stream(message) as stream, interrupted:
        while not interrupted.seen and stream.step():
            echo_text(stream.take_text())
    echo_text(stream.take_text())
    reply: Generation = stream.result
    chat.accept(message, reply)
    echo()
    if chat.dropped > dropped:
        notes(["the context is full: the oldest messages are dropped from now on"])
    if chat.is_cut_by_context(reply):
        notes(["the context ended before the reply did; the oldest messages will make room for the next"])  # fmt: skip


class _Interrupted:
    """Within the block, at a terminal, the first Ctrl-C is only recorded; the next one interrupts as usual."""

    def __init__(self) -> None:
        self.seen = False
        self._before: Any = None  # a handler, or one of signal's constants

    def __enter__(self) -> None:
        if sys.stdin is not None and sys.stdin.isatty():
            self._before = signal.signal(signal.SIGINT, self._note)

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.seen = True
        signal.signal(signal.SIGINT, self._before)


def _messages(lines: bool) -> Iterator[str]:
    """Messages: at a terminal with a prompt and line editing, otherwise from stdin."""
    if sys.stdin is None:  # closed
        return
    if not sys.stdin.isatty():
        if not lines:
            yield read_text("-")
            return
        for line in sys.stdin.buffer:
            yield line.decode("utf-8", "surrogateescape").rstrip("\r\n")
        return
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # gives input() line editing and history
    with contextlib.suppress(EOFError):
        while True:
            parts = [input("> ")]
            while parts[-1].endswith(_CONTINUED):
                parts[-1] = parts[-1].removesuffix(_CONTINUED)
                parts.append(input(". "))
            yield "\n".join(parts)
    echo()
