"""The campaign against hostile inputs: a short form of it, and that it sees what it looks for."""

from __future__ import annotations

import importlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import int8conv.cli

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize(
    "arguments",
    [["--count", "200", "--no-scripted"], ["--area", "scripted", "--count", "1000"]],
    ids=["mutations", "scripted"],
)
def test_a_short_campaign_finds_nothing(arguments: list[str]) -> None:
    command = [sys.executable, str(BENCHMARKS / "hostile.py"), "--seed", "2026", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    *_, total, seed = done.stdout.splitlines()
    assert seed == "seed 2026"
    name, cases, read, refused, findings, _ = total.split()
    assert (name, findings) == ("all", "0")
    assert int(cases) == int(read) + int(refused)
    assert int(cases) >= 190
    assert int(read) > 20
    assert int(refused) > 100


class Fake:
    """An area whose only command does what a test says."""

    name = "fake"

    def make(self, folder: Path) -> None:
        """Nothing is needed."""

    def damage(self, folder: Path, rng: random.Random, number: int) -> None:
        (folder / "input").write_text(str(number))

    def commands(self, folder: Path, number: int) -> list[tuple[list[str], str]]:
        return [([str(number)], "")]


class Command:
    """In the place of ``int8conv.cli.main``: case 1 does it, all others end well."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act

    def main(self, arguments: list[str], **_: Any) -> None:
        if arguments == ["1"]:
            self._act()
        raise SystemExit(0)


def say(text: str, code: int = 1) -> Callable[[], object]:
    def act() -> None:
        sys.stderr.write(text)
        raise SystemExit(code)

    return act


def fail() -> None:
    raise ValueError("no error of ours")


def wait() -> None:
    time.sleep(1000)


def work() -> None:
    while True:
        pass


def take() -> None:
    assert len(b"x" * (400 << 20))


FAULTS: dict[str, tuple[Callable[[], object], str]] = {
    "a signal": (lambda: os.kill(os.getpid(), signal.SIGSEGV), "crash"),
    "an exit": (lambda: os._exit(3), "crash"),
    "a traceback": (fail, "traceback"),
    "a loop": (work, "hang"),
    "a wait": (wait, "hang"),
    "memory": (take, "memory"),
    "a file read": (lambda: Path("/etc/passwd").read_bytes(), "elsewhere"),
    "a file written": (lambda: Path("../written").write_bytes(b""), "elsewhere"),
    "a file removed": (lambda: (Path("..") / "gone").unlink(missing_ok=True), "elsewhere"),
    "a command": (lambda: subprocess.run(["true"], check=False), "elsewhere"),
    "no line": (say(""), "output"),
    "two lines": (say("int8conv: error: one\nint8conv: error: two\n"), "output"),
    "a library's line": (say("thread panicked at x.rs\nint8conv: error: one\n"), "output"),
    "an escape": (say("int8conv: error: \x1b[2J\n"), "output"),
    "a line without end": (say("int8conv: error: " + "x" * 6000 + "\n"), "output"),
    "usage": (say("int8conv: error: one\n", 2), "output"),
}  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize("fault", FAULTS)
def test_it_sees(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    act, kind = FAULTS[fault]
    monkeypatch.syspath_prepend(BENCHMARKS)
    run = importlib.import_module("hostile_run")
    monkeypatch.setattr(run, "CPU_SECONDS", 0.5)
    monkeypatch.setattr(run, "WALL_SECONDS", 3.0)
    monkeypatch.setattr(int8conv.cli, "main", Command(act))
    good, scratch = tmp_path / "good", tmp_path / "scratch"
    good.mkdir()
    scratch.mkdir()
    tally = run.run_batch(
        Fake(), good, scratch, 0, range(3), [Path(sys.prefix), Path(sys.base_prefix)]
    )
    assert {(found.number, found.kind) for found in tally.findings} == {(1, kind)}
    assert tally.outcomes["good"] >= 2


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_a_good_refusal_is_no_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    run = importlib.import_module("hostile_run")
    monkeypatch.setattr(
        int8conv.cli, "main", Command(say("int8conv: note: x\nint8conv: error: one\n"))
    )
    (tmp_path / "good").mkdir()
    (tmp_path / "scratch").mkdir()
    tally = run.run_batch(
        Fake(), tmp_path / "good", tmp_path / "scratch", 0, range(3), [Path(sys.prefix)]
    )
    assert tally.findings == []
    assert tally.outcomes == {"good": 2, "refused": 1}
