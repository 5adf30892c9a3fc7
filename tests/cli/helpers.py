"""What the tests of the command line share: run a command, and hold a refusal to its form."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from int8conv.cli import main

from ..forks import python

ROOT = Path(__file__).parents[2]


def run(*args: object) -> Result:
    """A command in this process."""
    return CliRunner().invoke(main, [str(arg) for arg in args], prog_name="int8conv")


def succeed(*args: object) -> Result:
    """A command that must end well."""
    result = run(*args)
    assert (result.exit_code, result.exception) == (0, None), result.output
    return result


def run_apart(
    *args: object, code: str | None = None, stdout: int = subprocess.PIPE, forked: bool = False
) -> subprocess.CompletedProcess[str]:
    """A command, or Python ``code`` with those arguments, in a process of its own; forked (tests/forks.py), for a fifth of the time."""
    start = ["-m", "int8conv"] if code is None else ["-c", code]
    return subprocess.run(
        [*(python() if forked else [sys.executable]), *start, *map(str, args)], stdout=stdout, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip


def check_error_line(stderr: str, *words: object) -> None:
    """One line, of the form that errors have, with all of the words."""
    (line,) = stderr.splitlines()
    assert line.startswith("int8conv: error: ")
    for word in words:
        assert str(word) in line


def check_refused(result: Result, *words: object) -> None:
    """Exit code 1 and one line, and no traceback."""
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    check_error_line(result.stderr, *words)


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with the bytes of files."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def without_workspace(paths: dict[str, bytes | None]) -> dict[str, bytes | None]:
    """A snapshot without what waits there for the same command to go on."""
    return {name: data for name, data in paths.items() if not name.startswith(".out.partial")}


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the object in a JSON file."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def read_raw_header(path: Path) -> tuple[dict[str, Any], int]:
    """A safetensors header as it stands, and where the payload starts."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    value: dict[str, Any] = json.loads(data[8 : 8 + length])
    return value, 8 + length


def write_raw_header(path: Path, text: bytes) -> None:
    """Put other bytes in the place of a header's JSON; of the same length, if they are not longer."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    text = text.ljust(length)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def edit_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the object in a safetensors header; the payload stays."""
    header, _ = read_raw_header(path)
    change(header)
    write_raw_header(path, json.dumps(header, separators=(",", ":")).encode())


def flip_byte(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)
