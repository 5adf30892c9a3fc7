"""The command group: help, exit codes, what is imported, and how it ends when it cannot go on."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from int8conv import __version__
from int8conv.runtime.chat import REPLY_TOKENS
from int8conv.runtime.prompts import DEFAULT_NEW_TOKENS

from .helpers import (
    check_error_line,
    check_refused,
    run,
    run_apart,
    snapshot,
    succeed,
    without_workspace,
)

COMMANDS = ("convert", "inspect", "footprint", "generate", "chat")
HEAVY = "{'torch', 'triton', 'tokenizers', 'numpy'} & set(sys.modules)"


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_command(flag: str) -> None:
    shown = succeed(flag).stdout
    for command in COMMANDS:
        assert f"\n  {command} " in shown


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command: str, flag: str) -> None:
    shown = succeed(command, flag).stdout
    assert shown.startswith(f"Usage: int8conv {command} [OPTIONS] ")
    assert "  -h, --help" in shown


def test_version() -> None:
    assert succeed("--version").stdout == f"int8conv, version {__version__}\n"


def test_without_a_command_help_is_shown() -> None:
    result = run()
    assert result.exit_code == 2
    assert "Commands:" in result.output


@pytest.mark.parametrize(
    "args",
    [
        ["quantize"],
        ["convert"],
        ["convert", "a"],
        ["convert", "a", "b", "c"],
        ["convert", "a", "b", "--dtype", "float8"],
        ["convert", "a", "b", "--outliers", "all"],
        ["convert", "a", "b", "--jobs", "0"],
        ["inspect"],
        ["inspect", "a", "--unknown"],
        ["footprint", "a", "--context", "0"],
        ["footprint", "a", "--batch", "-1"],
        ["footprint", "a", "--dtype", "int8"],
        ["generate", "a"],
        ["generate", "a", "-p", "b", "-n", "-1"],
        ["generate", "a", "-p", "b", "--seed", "x"],
        ["generate", "a", "-p", "b", "--mode", "w4a4"],
    ],
    ids=" ".join,
)
def test_usage_errors(args: list[str]) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: int8conv")


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from int8conv.cli import main
for args in ([], {", ".join(repr([command]) for command in COMMANDS)}):
    main([*args, "--help"], standalone_mode=False)
print({HEAVY})
"""
    assert run_apart(code=code).stdout.splitlines()[-1] == "set()"


def test_importing_the_package_imports_nothing_heavy() -> None:
    done = run_apart(code=f"import sys, int8conv; dir(int8conv); print({HEAVY})")
    assert done.stdout == "set()\n"


def test_inspect_and_plain_convert_do_without_torch(source: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from int8conv.cli import main
main(["convert", sys.argv[1], sys.argv[2], "--outliers", "none"], standalone_mode=False)
for flags in ([], ["--json"], ["--verify", "--tensors"]):
    main(["inspect", sys.argv[2], *flags], standalone_mode=False)
for path in sys.argv[1:]:
    main(["footprint", path], standalone_mode=False)
print({HEAVY})
"""
    done = run_apart(source, tmp_path / "out", code=code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "{'numpy'}"


def test_as_a_module() -> None:
    done = run_apart("--version")
    assert (done.returncode, done.stdout) == (0, f"int8conv, version {__version__}\n")
    done = run_apart("inspect", "nowhere")
    assert (done.returncode, done.stdout) == (1, "")
    check_error_line(done.stderr, "nowhere", "no such folder")


@pytest.mark.parametrize("command", ["inspect", "generate"])
def test_a_broken_pipe_is_silent(example_int8: Path, command: str) -> None:
    """As with ``| head -c 1``, but for sure: nobody reads from the start."""
    reader, writer = os.pipe()
    os.close(reader)
    prompt = ["--prompt", "Once", "--max-new-tokens", 8] if command == "generate" else ["--json"]
    done = run_apart(command, example_int8, *prompt, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_a_full_disk_behind_stdout(source: Path) -> None:
    with open("/dev/full", "w") as full:
        done = run_apart("footprint", source, stdout=full.fileno())
    assert done.returncode == 1
    check_error_line(done.stderr, os.strerror(errno.ENOSPC))


def test_without_a_stdout(source: Path) -> None:
    code = "import os, sys; os.close(1); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    done = run_apart("-m", "int8conv", "footprint", source, code=code)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", ["convert", "inspect", "footprint", "generate"])
def test_a_name_that_is_too_long(command: str, tmp_path: Path) -> None:
    options: dict[str, list[object]] = {
        "convert": [tmp_path / "out"],
        "generate": ["-p", "Once"],
    }
    rest = options.get(command, [])
    check_refused(run(command, tmp_path / ("x" * 300), *rest), "x" * 300)


def test_an_interrupt_in_any_command(monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("int8conv.runtime.measure.footprint.open_predictor", interrupted)
    result = run("footprint", source)
    assert result.exit_code == 130
    assert result.stderr == "int8conv: interrupted\n"


def test_control_c_while_converting(source: Path, tmp_path: Path) -> None:
    """A real signal, sent by the first worker that quantizes."""
    code = """
import signal, sys, threading
from int8conv.cli import main
from int8conv.convert.rounding.quantize import RowQuantizer

quantize = RowQuantizer.quantize

def stop(self, *block):
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    RowQuantizer.quantize = quantize
    return quantize(self, *block)

RowQuantizer.quantize = stop
main(["convert", *sys.argv[1:], "--outliers", "none"], prog_name="int8conv")
"""
    before = snapshot(tmp_path)
    done = run_apart(source, tmp_path / "out", code=code)
    assert (done.returncode, done.stdout) == (130, "")
    note = "int8conv: note: run the same command again to resume\n"
    assert done.stderr == note + "int8conv: interrupted\n"
    assert without_workspace(snapshot(tmp_path)) == before


@pytest.mark.parametrize(
    ("command", "new_tokens"), [("generate", DEFAULT_NEW_TOKENS), ("chat", REPLY_TOKENS)]
)
def test_help_shows_the_default_that_is_used(command: str, new_tokens: int) -> None:
    shown = " ".join(succeed(command, "--help").output.split())
    assert re.search(rf"--max-new-tokens INTEGER RANGE Default: {new_tokens}\.", shown)
