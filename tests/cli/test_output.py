"""What is printed: no control character of a checkpoint's reaches a terminal, whatever the command."""

from __future__ import annotations

import ast
import json
import os
import sys
from pathlib import Path

import pytest
import torch

import int8conv.cli
from int8conv.cli.output import echo, echo_text, notes, print_json, table

from ..checkpoints import LLAMA, random_tensors, write_checkpoint
from .helpers import check_refused, edit_json, run, succeed

EVIL = "\x1b]0;owned\x07\x1b[2J\u202e"
SHOWN = r"\x1b]0;owned\x07\x1b[2J\u202e"


def test_commands_print_through_one_module() -> None:
    for path in Path(int8conv.cli.__file__).parent.glob("*.py"):
        calls = [ast.unparse(n.func) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]  # fmt: skip
        printing = [name for name in calls if name in ("print", "click.echo", "click.secho")]
        assert not printing or path.name == "output.py", path


def test_lines(capsys: pytest.CaptureFixture[str]) -> None:
    echo("", f"name {EVIL}", "a\nb")
    echo(EVIL, err=True)
    echo()
    out, err = capsys.readouterr()
    assert out == f"\nname {SHOWN}\na\\nb\n\n"
    assert err == f"{SHOWN}\n"


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    table(["tensor", EVIL], [[f"a\n{EVIL}", 1]])
    out, _ = capsys.readouterr()
    assert len(out.splitlines()) == 3
    assert "".join(out.splitlines()).isprintable()
    assert out.count(SHOWN) == 2


def test_notes_are_one_line_of_bounded_length(capsys: pytest.CaptureFixture[str]) -> None:
    notes(["one\n\ttwo", "y" * 10**6, EVIL])
    _, err = capsys.readouterr()
    first, second, third = err.splitlines()
    assert first == "int8conv: note: one two"
    assert second.endswith("yyy...")
    assert len(second) < 1100
    assert third == f"int8conv: note: {SHOWN}"


def test_json_is_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    value = {EVIL: "\x7f\x9b\ud800é"}
    print_json(value)
    out, _ = capsys.readouterr()
    assert out.isascii()
    assert out.replace("\n", "").isprintable()
    assert json.loads(out) == value


@pytest.mark.parametrize(
    ("terminal", "shown"),
    [(False, "a\x1b]0;b\r\n\u202bc\t"), (True, "a\\x1b]0;b\\r\n\u202bc\t")],
    ids=["file", "terminal"],
)
def test_text_of_a_model_is_changed_for_terminals_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool, shown: str
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    echo_text("a\x1b]0;b\r\n\u202bc\t")
    assert capsys.readouterr().out == shown


def test_names_of_tensors_and_config_keys(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA) | {f"model.{EVIL}.weight": torch.zeros(4)}
    source = write_checkpoint(tmp_path / "source", tensors=tensors)
    dry = run("convert", source, tmp_path / "out", "--dry-run", "--outliers", "none")
    assert SHOWN in dry.output
    assert "".join(dry.output.splitlines()).isprintable()
    config = source / "config.json"
    edit_json(config, lambda c: c.update(rope_scaling={"type": EVIL}))
    check_refused(run("generate", source, "-p", "x"), SHOWN)
    edit_json(config, lambda c: c.update(rope_scaling=None, model_type=f"{EVIL}\n"))
    check_refused(run("generate", source, "-p", "x"), r"\x1b]0;owned")
    alone = run("footprint", source)  # of the weights, with a note
    assert alone.exit_code == 0
    assert "".join(alone.output.splitlines()).isprintable()


def test_names_in_a_converted_folder(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "m\x1b[31m")
    succeed("convert", source, tmp_path / "out", "--outliers", "none")
    edit_json(tmp_path / "out" / "int8conv.json", lambda m: m.update(generator=EVIL))
    shown = succeed("inspect", tmp_path / "out")
    assert f"from m\\x1b[31m, by {SHOWN}" in shown.output
    assert "".join(shown.output.splitlines()).isprintable()


@pytest.mark.skipif(sys.platform == "darwin", reason="its names are UTF-8")
def test_a_path_that_is_not_utf_8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    check_refused(run("inspect", folder), r"caf\udce9")
    write_checkpoint(folder)
    check_refused(run("inspect", folder), r"caf\udce9")
