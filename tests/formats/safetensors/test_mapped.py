"""A mapped file that is replaced, written to or made shorter: an error, or one line and exit code 1; no crash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from int8conv.errors import FileChangedError, NotFoundError
from int8conv.formats.safetensors.mapped import check_length, map_file
from int8conv.formats.safetensors.storage import LocalFile

from ..damage import rejected


@pytest.fixture
def file(tmp_path: Path) -> LocalFile:
    """A file that was opened once, of four pages."""
    (tmp_path / "x").write_bytes(b"a" * 16384)
    opened = LocalFile(tmp_path / "x")
    with opened.open():
        pass
    return opened


def test_a_mapping_keeps_its_file_when_another_takes_the_name(file: LocalFile) -> None:
    mapping = map_file(file)
    (new := file.path.with_name("new")).write_bytes(b"b" * 16384)
    new.replace(file.path)
    assert mapping[:] == b"a" * 16384
    check_length(mapping)
    file.check_unchanged()


def test_a_file_that_was_replaced_before_is_not_mapped(file: LocalFile) -> None:
    (new := file.path.with_name("new")).write_bytes(b"b" * 16384)
    new.replace(file.path)
    with rejected(FileChangedError, str(file.path)):
        map_file(file)


@pytest.mark.parametrize("size", [0, 5000, 16383, 20000])
def test_a_file_of_another_length_is_not_mapped(file: LocalFile, size: int) -> None:
    os.truncate(file.path, size)
    with rejected(FileChangedError, str(file.path)):
        map_file(file)


def test_nor_one_that_is_gone(file: LocalFile) -> None:
    file.path.unlink()
    with rejected(NotFoundError, str(file.path)):
        map_file(file)


def test_a_file_that_became_shorter_is_noticed(file: LocalFile) -> None:
    mapping = map_file(file)
    os.truncate(file.path, 5000)
    with rejected(FileChangedError, str(file.path), "was truncated"):
        check_length(mapping)


def test_so_is_one_that_was_written_to(file: LocalFile) -> None:
    map_file(file)
    os.utime(file.path, ns=(0, 0))  # before the clock's next step a write would not show
    with rejected(FileChangedError, str(file.path)):
        file.check_unchanged()


CRASH = """
import sys, os
from pathlib import Path
from int8conv.formats.safetensors import mapped
from int8conv.formats.safetensors.storage import LocalFile
path = Path(sys.argv[1])
mapped.exit_if_truncated()
mapping = mapped.map_file(LocalFile(path))
os.truncate(path, 4096)
HOW
"""


@pytest.mark.parametrize(
    "how",
    [
        "print(mapping[8192])",
        "import numpy; print(numpy.frombuffer(mapping, numpy.uint8).sum())",
        "import torch; print(torch.frombuffer(mapping, dtype=torch.float32).sum())",
        """import torch, threading
thread = threading.Thread(target=lambda: torch.frombuffer(mapping, dtype=torch.int8).clone())
thread.start(); thread.join()""",
    ],
)
def test_reading_on_ends_with_one_line(tmp_path: Path, how: str) -> None:
    (tmp_path / "x").write_bytes(bytes(1 << 20))
    code = CRASH.replace("HOW", how)
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "x"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"int8conv: error: {tmp_path / 'x'}: the file was truncated")
    assert done.stdout == ""


def test_another_bus_error_ends_the_process_as_ever(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(1 << 20))
    code = CRASH.replace("HOW", "os.kill(os.getpid(), 7)").replace("os.truncate(path, 4096)", "")
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "x"], capture_output=True, check=False)  # fmt: skip
    assert done.returncode == -7
    assert done.stderr == b""


GENERATE = """
import os, sys
from pathlib import Path
from int8conv.cli import main
from int8conv.runtime.decoder.decoder import Decoder
folder, moment, calls = Path(sys.argv[1]), sys.argv[2], 0

def shorten():
    for path in folder.glob("*.safetensors"):
        os.truncate(path, 8192)

def forward(self, *args, **kwargs):
    global calls
    calls += 1
    if calls == 3:
        shorten()
    return step(self, *args, **kwargs)

def load(*args, **kwargs):
    init(*args, **kwargs)
    shorten()

step, init = Decoder.forward, Decoder.__init__
if moment == "between tokens":
    Decoder.forward = forward
else:
    Decoder.__init__ = load
main(["generate", str(folder), "--prompt", "A vector", "--max-new-tokens", "8"], prog_name="int8conv")
"""


@pytest.mark.parametrize("moment", ["after loading", "between tokens"])
def test_generate_from_a_file_that_becomes_shorter(
    example_int8: Path, tmp_path: Path, moment: str
) -> None:
    folder = Path(shutil.copytree(example_int8, tmp_path / "model"))
    done = subprocess.run(
        [sys.executable, "-c", GENERATE, folder, moment], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 1, done
    lines = [line for line in done.stderr.splitlines() if "error" in line]
    assert len(lines) == 1, done.stderr
    assert "was truncated" in lines[0]
    assert "Traceback" not in done.stderr
