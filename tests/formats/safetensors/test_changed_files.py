"""A local file stays the one that was opened first; every way in which it cannot be read is one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from int8conv.errors import FileChangedError, Int8convError, NotFoundError, TruncatedFileError
from int8conv.formats.safetensors.storage import LocalFile

from ..damage import rejected


@pytest.fixture
def file(tmp_path: Path) -> LocalFile:
    (tmp_path / "x").write_bytes(b"0123456789")
    return LocalFile(tmp_path / "x")


def read(file: LocalFile, offset: int, nbytes: int) -> bytes:
    data = bytearray(nbytes)
    with file.open() as reader:
        reader.read_into(memoryview(data), offset)
    return bytes(data)


def test_reads_at_offsets(file: LocalFile) -> None:
    assert read(file, 3, 4) == b"3456"
    assert read(file, 10, 0) == b""
    assert (file.size(), file.name, str(file)) == (10, "x", str(file.path))


def test_a_file_that_ends_before(file: LocalFile) -> None:
    with rejected(TruncatedFileError, str(file.path)):
        read(file, 8, 3)


def replaced(path: Path) -> None:
    path.with_name("new").write_bytes(b"abcdefghij")
    path.with_name("new").replace(path)


def overwritten(path: Path) -> None:
    before = path.stat().st_mtime_ns
    path.write_bytes(b"abcdefghij")
    os.utime(path, ns=(before, before + 1))  # a write within one step of the clock would not show


def shortened(path: Path) -> None:
    os.truncate(path, 3)


@pytest.mark.parametrize("change", [replaced, overwritten, shortened])
def test_another_file_of_that_name_is_refused(
    file: LocalFile, change: Callable[[Path], None]
) -> None:
    read(file, 0, 1)
    change(file.path)
    with rejected(FileChangedError, str(file.path), "changed while it was in use"):
        read(file, 0, 1)


def test_equal_files_are_one_key(file: LocalFile) -> None:
    again = LocalFile(file.path)
    read(file, 0, 1)
    assert {file: 1}[again] == 1


def gone(path: Path) -> None:
    path.unlink()


def a_dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def a_circle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("change", [gone, a_dangling_link, a_circle, a_fifo, a_folder])
def test_what_cannot_be_read_is_one_line(file: LocalFile, change: Callable[[Path], None]) -> None:
    change(file.path)
    with rejected(NotFoundError, str(file.path), "cannot be read"):
        read(file, 0, 1)


@pytest.mark.parametrize("ask", [LocalFile.size, LocalFile.stamp])
def test_so_is_asking_for_what_is_gone(file: LocalFile, ask: Callable[[LocalFile], object]) -> None:
    file.path.unlink()
    with pytest.raises(Int8convError, match="cannot be read: No such file"):
        ask(file)


def test_the_stamp_tells_a_file_from_another_of_the_same_size_and_time(file: LocalFile) -> None:
    before, stamp = file.path.stat(), file.stamp()
    replaced(file.path)
    os.utime(file.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stamp() != stamp
