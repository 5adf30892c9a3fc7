"""A shard is written at its planned offsets, in any order, in parts, and again where an earlier attempt stopped."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from int8conv.formats.int8.layout import TensorSpec, plan_layout
from int8conv.formats.int8.writer import Flusher, ShardWriter
from int8conv.formats.safetensors.checksum import checksum

from .test_workspace import failing


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """An empty folder."""
    folder = tmp_path / "room"
    folder.mkdir()
    return folder


def a_writer(folder: Path) -> ShardWriter:
    specs = [TensorSpec("a", "U8", (3,)), TensorSpec("b", "F16", (2, 2))]
    (layout,) = plan_layout([((spec,),) for spec in specs], max_shard_bytes=1 << 20)
    return ShardWriter(folder, layout)


def test_tensors_are_written_in_any_order_and_in_parts(room: Path) -> None:
    shard = a_writer(room)
    shard.write("b", memoryview(b"5678"), 4)
    shard.write("a", memoryview(b"abc"))
    shard.write("b", memoryview(b"1234"))
    shard.close()
    (path,) = room.iterdir()
    data = path.read_bytes()
    assert data == shard.layout.header + b"abc" + bytes(253) + b"12345678"
    assert len(data) == shard.layout.nbytes


def test_short_writes_are_continued(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:100], offset))
    shard = a_writer(room)
    shard.write("a", memoryview(b"abc"))
    shard.close()
    assert next(room.iterdir()).read_bytes()[:4099] == shard.layout.header + b"abc"


def test_what_an_earlier_attempt_wrote_stays(room: Path) -> None:
    shard = a_writer(room)
    shard.write("a", memoryview(b"abc"))
    shard.close()
    again = a_writer(room)
    assert again.checksum("a") == checksum(b"abc")
    again.write("b", memoryview(b"12345678"))
    again.close()
    data = (room / again.layout.name).read_bytes()
    assert data == again.layout.header + b"abc" + bytes(253) + b"12345678"


def test_a_shard_that_cannot_be_begun_leaves_no_open_file(
    room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[int] = []
    close = os.close

    def record_close(fd: int) -> None:
        closed.append(fd)
        close(fd)

    monkeypatch.setattr(os, "close", record_close)
    monkeypatch.setattr(os, "ftruncate", failing(errno.ENOSPC, function=os.ftruncate))
    with pytest.raises(OSError, match="space"):
        a_writer(room)
    assert len(closed) == 1


def test_room_is_taken_first_and_given_back(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = a_writer(room)
    assert shard.path.stat().st_blocks * 512 >= shard.layout.nbytes
    shard.abandon()
    assert shard.path.stat().st_size == shard.path.stat().st_blocks == 0


def test_a_file_system_that_cannot_reserve_room(
    room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        os, "posix_fallocate", failing(errno.EOPNOTSUPP, function=os.posix_fallocate)
    )
    shard = a_writer(room)
    shard.write("a", memoryview(b"abc"))
    shard.close()
    assert shard.path.stat().st_size == shard.layout.nbytes


def test_a_flush_that_fails_is_told_at_the_end(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system tells it once, to whoever flushes first."""
    shard, told = a_writer(room), threading.Event()

    def fail(fd: int) -> None:
        told.set()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(OSError, match="Input/output"), Flusher([shard]):
        told.wait()
    shard.close()
