"""What ``generate`` and ``chat`` share: options as they reach ``load``, what is told while loading, text from files."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner

from int8conv.cli.generating import check_text, generation_options, load_model, read_text
from int8conv.errors import GenerationError, NotFoundError
from int8conv.kernels.cpu import jit
from int8conv.runtime import loader

LOADING = {"mode": "w8a8", "dtype": "float16", "kv_cache": "int8", "device": "cuda:1", "outlier_fallback": False, "tokenizer": None}  # fmt: skip


def model(*unsupported: str, loading: object = None) -> Any:
    made = SimpleNamespace(
        defaults=SimpleNamespace(unsupported=unsupported), loading=loading, prepared=0
    )
    made.prepare = lambda: setattr(made, "prepared", made.prepared + 1)
    return made


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What ``load`` gives next; then what it was called with."""
    found: list[Any] = [model()]
    monkeypatch.setattr(loader, "load", lambda path, **given: found.append((path, given)) or found[0])  # fmt: skip
    return found


def options(**changes: Any) -> dict[str, Any]:
    return (
        LOADING
        | {"verbose": False, "stop": (), "stop_token": (), "logit_bias": (), "top_k": 7}
        | changes
    )


def test_what_is_for_load_is_taken_and_the_rest_is_left(loaded: list[Any]) -> None:
    given = options(stop=("a", "b"), stop_token=("2", "</s>"), logit_bias=("5=-1.5",))
    made = load_model("folder", given)
    assert loaded[1] == ("folder", LOADING)
    rest = {"top_k": 7, "end_tokens": [2, "</s>"], "logit_bias": {5: -1.5}}
    assert given == rest | {"stop": ["a", "b"]}
    assert made is loaded[0]
    assert made.prepared == 1
    given = options()
    load_model("folder", given)
    assert given == {"stop": None, "top_k": 7, "end_tokens": [], "logit_bias": None}


def test_nothing_is_said_without_need(loaded: list[Any], capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    load_model("folder", options())
    assert capsys.readouterr() == ("", "")


def test_what_is_not_followed_is_noted(loaded: list[Any], capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    loaded[0] = model("num_beams=4", "x=1")
    load_model("folder", options())
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f"int8conv: note: generation_config.json: {key} is not followed" for key in ("num_beams=4", "x=1")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("loading", "text"),
    [
        (None, r"^int8conv: loaded in \d+\.\d\d s\n$"),
        (
            SimpleNamespace(nbytes=2_000_000, seconds=0.5, speed=4e6),
            r"^int8conv: loaded in \d+\.\d\d s: 2\.0 MB to the GPU in 0\.50 s, 4\.0 MB/s\n$",
        ),
    ],
    ids=["CPU", "GPU"],
)
def test_how_long_loading_took(
    loaded: list[Any], capsys: pytest.CaptureFixture[str], loading: object, text: str
) -> None:

    loaded[0] = model(loading=loading)
    load_model("folder", options(verbose=True))
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(text, err)


@pytest.mark.parametrize("terminal", [True, False])
def test_compiling_is_told_to_a_terminal(
    loaded: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:  # fmt: skip
    told: list[Any] = []
    monkeypatch.setattr(jit, "on_compile", told.append)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    load_model("folder", options())
    assert len(told) == terminal
    for tell in told:
        tell()
        assert "compiling for this processor" in capsys.readouterr().err


def test_options_of_a_command() -> None:
    """In this order in its help, with the default that the command names."""
    found: dict[str, Any] = {}

    @click.command()
    @generation_options(321)
    def command(**given: Any) -> None:
        found.update(given)

    text = CliRunner().invoke(command, ["--help"]).output
    assert "Default: 321." in text
    assert command.params[0].name == "max_new_tokens"
    assert CliRunner().invoke(command, []).exit_code == 0
    assert found.items() >= {
        "max_new_tokens": None, "temperature": None, "top_k": None, "top_p": None, "min_p": None, "repetition_penalty": None,
        "stop": (), "seed": None, "mode": None, "dtype": None, "kv_cache": None, "device": "cpu", "outlier_fallback": True,
        "tokenizer": None, "verbose": False,
    }.items()  # fmt: skip
    line = ["-n", "0", "-t", "0.5", "--stop", "a", "--stop", "b", "--no-outlier-fallback", "-v"]
    assert CliRunner().invoke(command, line).exit_code == 0
    assert (found["max_new_tokens"], found["temperature"], found["stop"]) == (0, 0.5, ("a", "b"))
    assert (found["outlier_fallback"], found["verbose"]) == (False, True)
    for wrong in (["-n", "-1"], ["--mode", "w4"], ["--kv-cache", "int4"], ["--seed", "x"]):
        assert CliRunner().invoke(command, wrong).exit_code == 2


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", ""), (b"\n", ""), (b"a", "a"), (b"a\n", "a"), (b"a\r\n", "a"), (b"a\n\n", "a\n"), (b"\na\r", "\na"),
        ("naïve 文字\n".encode(), "naïve 文字"), (b"\xef\xbb\xbfa", "\ufeffa"),
    ],
)  # fmt: skip
def test_text_without_one_line_break_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, text: str
) -> None:
    (tmp_path / "prompt").write_bytes(data)
    assert read_text(str(tmp_path / "prompt")) == text
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    assert read_text("-") == text


def test_text_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(NotFoundError, match="cannot be read") as caught:
            read_text(str(path))
        assert caught.value.file == str(path)
    (tmp_path / "bad").write_bytes(b"a\xff")
    with pytest.raises(GenerationError, match=r"bad is not UTF-8 text"):
        read_text(str(tmp_path / "bad"))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"\x80")))
    with pytest.raises(GenerationError, match=r"^stdin is not UTF-8 text"):
        read_text("-")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(NotFoundError, match=r"^stdin: cannot be read: it is closed"):
        read_text("-")


def test_text_of_the_shell() -> None:
    assert check_text("größe \U0001f642", "--prompt") == "größe \U0001f642"
    with pytest.raises(GenerationError, match=r"^--prompt is not UTF-8 text"):
        check_text("a\udcff", "--prompt")
