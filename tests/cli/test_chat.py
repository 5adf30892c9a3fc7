"""``int8conv chat``: lines in, replies out; how it ends."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import int8conv
from int8conv.cli import main
from int8conv.runtime.chat import Chat

from .helpers import ROOT, check_refused

TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"


@pytest.fixture
def folder(converted: Path) -> Path:
    (converted / "chat_template.jinja").write_text(TEMPLATE)
    return converted


def talk(folder: Path, text: str | bytes, *flags: object) -> Result:
    return CliRunner().invoke(main, ["chat", str(folder), *map(str, flags)], input=text)


def test_a_line_a_message(folder: Path, tmp_path: Path) -> None:
    """With --lines; a conversation that was saved goes on where it was."""
    chat = Chat(int8conv.load(folder), system="Be naïve.", max_new_tokens=6)
    expected = "".join(chat.say(message).text + "\n" for message in ("The function", "größer"))
    flags = ["-n", 6, "--lines", "--save", tmp_path / "chat.json"]
    result = talk(folder, "The function\n\n  \ngrößer\r\n", *flags, "--system", "Be naïve.")
    assert (result.exit_code, result.stdout, result.stderr) == (0, expected, "")
    again = talk(folder, "More", "-n", 6, "--load", tmp_path / "chat.json")
    assert again.stdout == chat.say("More").text + "\n"


def test_stdin_is_one_message(folder: Path) -> None:
    chat = Chat(int8conv.load(folder), max_new_tokens=6)
    expected = chat.say("def f(x):\n\n    return x").text + "\n"
    result = talk(folder, "def f(x):\n\n    return x\n", "-n", 6)
    assert (result.exit_code, result.stdout, result.stderr) == (0, expected, "")
    assert talk(folder, "The function", "-n", 0).stdout == "\n"


def test_a_full_context_is_said_and_goes_on(folder: Path) -> None:
    result = talk(folder, "word " * 985 + "\nShort.\n", "--lines", "-n", 60, "-t", 1, "--seed", 1)
    assert result.exit_code == 0
    first, second, *_ = result.stderr.splitlines()
    assert (
        first
        == "int8conv: note: the context ended before the reply did; the oldest messages will make room for the next"
    )
    assert (
        second == "int8conv: note: the context is full: the oldest messages are dropped from now on"
    )


def test_arguments_of_the_template(folder: Path, tmp_path: Path) -> None:
    source = "{{ mood }} {{ deep.a }} {{ tools[0].name }} {{ documents[0].text }}"
    (folder / "chat_template.jinja").write_text(source)
    (tmp_path / "list.json").write_text('[{"name": "look_up", "text": "facts"}]')
    chat = Chat(int8conv.load(folder), max_new_tokens=5)
    flags = ["--template-arg", "mood=kind", "--template-arg", 'deep={"a": 1}', "--tools", tmp_path / "list.json", "--documents", tmp_path / "list.json"]  # fmt: skip
    expected = chat.model.generate(chat.model.tokenizer.encode("kind 1 look_up facts", special=False), max_new_tokens=5)  # fmt: skip
    assert talk(folder, "any", "-n", 5, *flags).stdout == expected.text + "\n"
    assert talk(folder, "any", "--template-arg", "mood").exit_code == 2
    (tmp_path / "list.json").write_text("{}")
    check_refused(talk(folder, "any", "--tools", tmp_path / "list.json"), "list.json", "expected a list of objects, found dict")  # fmt: skip
    check_refused(talk(folder, "any", "--template", "rag"), "no chat template named 'rag': expected default")  # fmt: skip


def test_options_are_those_of_generate(folder: Path) -> None:
    flags = ["-n", 8, "-t", 1.0, "--top-p", 0.9, "--seed", 1, "--repetition-penalty", 1.1]
    first, again = (talk(folder, "The function\n", *flags).stdout for _ in range(2))
    assert first == again != talk(folder, "The function\n", "-n", 8).stdout


def test_an_int8_cache(folder: Path) -> None:
    chat = Chat(int8conv.load(folder, kv_cache="int8"), max_new_tokens=6)
    expected = "".join(chat.say(message).text + "\n" for message in ("The function", "a list"))
    result = talk(folder, "The function\na list\n", "-n", 6, "--kv-cache", "int8", "--lines")
    assert (result.exit_code, result.stdout, result.stderr) == (0, expected, "")


def test_no_messages(folder: Path) -> None:
    assert (talk(folder, "").exit_code, talk(folder, "").output) == (0, "")


def test_what_cannot_be_talked_with(converted: Path, example_int8: Path) -> None:
    check_refused(talk(example_int8, "a\n"), example_int8, "no chat template in this folder")
    (converted / "chat_template.jinja").write_text("{% for %}")
    check_refused(
        talk(converted, "a\n"), "chat_template.jinja", "the chat template fails in line 1"
    )
    (converted / "chat_template.jinja").write_text(TEMPLATE)
    check_refused(talk(converted, b"a\xff\n"), "stdin is not UTF-8 text")
    check_refused(
        talk(converted, "word " * 1500), "does not fit the context", "less than 1024 tokens"
    )
    check_refused(talk(converted, "a\n", "--top-p", 7), "top_p")


class Terminal:
    """A chat at a terminal of its own."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self._own, other = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "int8conv", "chat", str(folder), *flags], stdin=other, stdout=other,
            stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "dumb"},
            start_new_session=True,
        )  # fmt: skip
        os.close(other)
        self.seen = b""

    def wait(self, enough: Callable[[bytes], bool]) -> None:
        """Until it has written enough; however long the machine takes, as long as it has not ended."""
        while not enough(self.seen):
            assert self.process.poll() is None, self.seen
            self._read(1)

    def _read(self, seconds: float) -> None:
        """What it writes within that time; a terminal that nobody reads would stop it."""
        if select.select([self._own], [], [], seconds)[0]:
            with contextlib.suppress(OSError):  # EIO: it has ended
                self.seen += os.read(self._own, 4096)

    def type(self, data: bytes) -> None:
        os.write(self._own, data)

    def interrupt(self) -> None:
        """Ctrl-C, and Enter from time to time until it has ended: CPython looks after a line for a signal that came between
        readline's prompt and its wait for a key. Another signal would interrupt the ending itself, where that takes long."""
        self.process.send_signal(signal.SIGINT)
        while self.process.poll() is None:
            for _ in range(50):
                self._read(0.1)
                if self.process.poll() is not None:
                    return
            with contextlib.suppress(OSError):
                self.type(b"\r")

    def end(self) -> tuple[int, bytes]:
        try:
            _, message = self.process.communicate()
        finally:
            self.process.kill()
            os.close(self._own)
        return self.process.returncode, message


def test_at_a_terminal_the_end_of_input_ends_it(folder: Path) -> None:
    terminal = Terminal(folder, "-n", "4")
    terminal.wait(lambda seen: b"> " in seen)
    terminal.type(b"The function\r")
    terminal.wait(lambda seen: seen.count(b"> ") >= 2)
    terminal.type(b"\x04")
    assert terminal.end() == (0, b"")


def test_at_a_terminal_ctrl_c_ends_it_while_it_waits(folder: Path) -> None:
    terminal = Terminal(folder, "-n", "4")
    terminal.wait(lambda seen: b"> " in seen)
    terminal.interrupt()
    assert terminal.end() == (130, b"int8conv: interrupted\n")


def test_at_a_terminal_ctrl_c_ends_a_reply_and_no_more(folder: Path) -> None:
    """The next message is asked for; a line with a backslash at its end goes on."""
    terminal = Terminal(folder, "-n", "900", "-t", "1")
    terminal.wait(lambda seen: b"> " in seen)
    terminal.type(b"The \\\rfunction\r")
    terminal.wait(lambda seen: b". " in seen and len(seen) > 80)
    terminal.process.send_signal(signal.SIGINT)
    terminal.wait(lambda seen: seen.count(b"> ") >= 2)
    terminal.type(b"\x04")
    assert terminal.end() == (0, b"")
