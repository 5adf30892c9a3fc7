"""The n-th write of a conversion fails, for every n: no output or the whole one, one line, and the same command ends well."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from int8conv.convert.converter import convert_checkpoint
from int8conv.convert.outliers.calibrate import calibrate
from int8conv.errors import NoSpaceError, OutputError
from int8conv.formats.int8.folder import open_converted
from int8conv.formats.int8.stats import write_stats
from int8conv.formats.int8.verify import verify

from ..checkpoints import edit_config

WRITES = ("pwrite", "write", "fsync", "ftruncate", "posix_fallocate", "rename", "replace", "mkdir", "unlink", "rmdir")  # fmt: skip
"""Of ``os``: all that changes a file or folder (``fdatasync`` comes from a clock: see ``test_stream``), and ``open`` to create."""


class Injection:
    """Counts what writes, in every thread, and fails at one number of them."""

    def __init__(self, fail_at: int, number: int) -> None:
        self.calls, self.failed = 0, ""
        self._fail_at, self._number, self._lock = fail_at, number, threading.Lock()

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name != "open" or args[1] & os.O_CREAT:
                with self._lock:
                    self.calls += 1
                    now = self.calls == self._fail_at
                if now:
                    self.failed = name
                    raise OSError(self._number, os.strerror(self._number))
            return function(*args, **kwargs)

        return call


@contextmanager
def failing_at(count: int, number: int) -> Iterator[Injection]:
    injection = Injection(count, number)
    with pytest.MonkeyPatch.context() as patch:
        for name in (*WRITES, "open"):
            patch.setattr(os, name, injection.wrap(name, getattr(os, name)))
        yield injection


def contents(folder: Path) -> dict[str, bytes] | None:
    return {p.name: p.read_bytes() for p in folder.iterdir()} if folder.exists() else None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["full", "broken"])
@pytest.mark.parametrize("force", [False, True], ids=["new", "force"])
def test_every_write_of_a_conversion(
    source: Path, tmp_path: Path, force: bool, number: int
) -> None:
    room = tmp_path / "room"
    before = None
    if force:
        convert_checkpoint(source, tmp_path / "old", outliers="none")
        before = contents(tmp_path / "old")
        edit_config(source, rms_norm_eps=1e-5)
    convert_checkpoint(source, tmp_path / "wanted", outliers="none")
    wanted, out = contents(tmp_path / "wanted"), room / "out"
    failed: set[str] = set()
    for count in range(1, 1000):
        room.mkdir()
        if force:
            shutil.copytree(tmp_path / "old", out)
        error = None
        with failing_at(count, number) as injection:
            try:
                convert_checkpoint(source, out, outliers="none", force=force, jobs=1)
            except OutputError as caught:
                error = caught
        if not injection.failed:
            break
        failed.add(injection.failed)
        where = f"{injection.failed}, write {count}: {error}"
        if error is not None:
            assert str(out) in str(error), where
            assert "\n" not in str(error), where
            assert isinstance(error, NoSpaceError) == (number == errno.ENOSPC), where
            assert contents(out) == before, where
            convert_checkpoint(source, out, outliers="none", force=force)
        assert contents(out) == wanted, where
        assert [path.name for path in room.iterdir() if path != out] in ([], [".out.partial"]), (
            where
        )
        shutil.rmtree(room)
    assert count > 40
    assert failed >= {"pwrite", "write", "fsync", "ftruncate", "posix_fallocate", "rename", "mkdir", "open"}  # fmt: skip
    assert injection.calls == count - 1
    verify(open_converted(out))


@pytest.mark.parametrize("existing", [False, True])
def test_every_write_of_a_statistics_file(source: Path, tmp_path: Path, existing: bool) -> None:
    stats, room = calibrate(source), tmp_path / "room"
    write_stats(stats, tmp_path / "wanted")
    wanted, out = (tmp_path / "wanted").read_bytes(), room / "stats"
    before = None
    if existing:
        write_stats(replace(stats, source="another"), tmp_path / "old")
        before = (tmp_path / "old").read_bytes()
    for count in range(1, 100):
        room.mkdir()
        if before is not None:
            out.write_bytes(before)
        with failing_at(count, errno.ENOSPC) as injection:
            if count <= _writes_of_a_file():
                with pytest.raises(NoSpaceError, match=str(out)):
                    write_stats(stats, out)
            else:
                write_stats(stats, out)
        if not injection.failed:
            break
        assert {p.name: p.read_bytes() for p in room.iterdir()} == ({"stats": before} if before else {})  # fmt: skip
        shutil.rmtree(room)
    assert out.read_bytes() == wanted
    assert count == _writes_of_a_file() + 1


def _writes_of_a_file() -> int:
    """Made, written, flushed, renamed."""
    return 4
