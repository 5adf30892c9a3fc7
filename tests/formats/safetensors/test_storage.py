"""Reads at offsets of a file on this machine, and what a file that cannot be read is called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from int8conv.errors import NotFoundError, TruncatedFileError
from int8conv.formats.safetensors.storage import LocalFile

from ..damage import rejected


@pytest.fixture
def file(tmp_path: Path) -> LocalFile:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(range(100)))
    return LocalFile(path)


def read(file: LocalFile, offset: int, nbytes: int) -> bytes:
    data = bytearray(nbytes)
    with file.open() as reader:
        reader.read_into(memoryview(data), offset)
    return bytes(data)


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 100), (0, 1), (99, 1), (17, 40), (100, 0)])
def test_bytes_from_an_offset_on(file: LocalFile, offset: int, nbytes: int) -> None:
    assert read(file, offset, nbytes) == bytes(range(offset, offset + nbytes))


def test_reads_in_any_order_do_not_disturb_each_other(file: LocalFile) -> None:
    with file.open() as reader:
        for offset in (50, 0, 90, 3):
            data = bytearray(4)
            reader.read_into(memoryview(data), offset)
            assert data == bytes(range(offset, offset + 4))


def test_reads_that_the_system_cuts_short_go_on(
    file: LocalFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, to, at: whole(fd, [to[0][:7]], at))
    assert read(file, 10, 60) == bytes(range(10, 70))


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 101), (99, 2), (100, 1), (4000, 1)])
def test_a_file_that_ends_before(file: LocalFile, offset: int, nbytes: int) -> None:
    with rejected(TruncatedFileError, str(file.path), "truncated"):
        read(file, offset, nbytes)


def test_a_file_that_cannot_be_opened_or_read(tmp_path: Path) -> None:
    with rejected(NotFoundError, str(tmp_path / "absent"), "No such file"):
        read(LocalFile(tmp_path / "absent"), 0, 1)
    with rejected(NotFoundError, str(tmp_path), "cannot be read"):
        read(LocalFile(tmp_path), 0, 1)


def test_the_file_is_closed_even_after_an_error(file: LocalFile) -> None:
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(TruncatedFileError):
            read(file, 100, 1)
        read(file, 0, 1)
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before


def test_name_size_and_how_errors_call_it(file: LocalFile) -> None:
    assert (file.name, file.size(), str(file)) == ("model.safetensors", 100, str(file.path))


def test_the_stamp_differs_with_size_and_with_time(file: LocalFile) -> None:
    stamp = file.stamp()
    assert stamp == LocalFile(file.path).stamp()
    status = file.path.stat()
    os.utime(file.path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert file.stamp() != stamp
    os.utime(file.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stamp() == stamp
    file.path.write_bytes(bytes(99))
    os.utime(file.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stamp() != stamp
