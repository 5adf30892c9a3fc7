"""Compiled code is kept where it can be; where it cannot, that is said, and everything works."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path
from typing import Any

import numba
import pytest
from numba.core import caching

from int8conv.kernels.cpu import jit_cache


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(jit_cache, "NOTES", found)
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    return found


def only_below(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing else be writable."""
    real = caching._CacheLocator.ensure_cache_path

    def ensure(self: Any) -> None:
        if folder not in Path(self.get_cache_path()).parents:
            raise PermissionError(errno.EACCES, "Permission denied")
        real(self)

    monkeypatch.setattr(caching._CacheLocator, "ensure_cache_path", ensure)


def test_a_temporary_folder_takes_its_place(
    notes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    only_below(tmp_path, monkeypatch)
    assert jit_cache.find_place()
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert str(folder) == numba.config.CACHE_DIR
    assert [str(folder) in note for note in notes] == [True]


def test_one_that_others_can_write_does_not(
    notes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    only_below(tmp_path, monkeypatch)
    assert jit_cache.find_place()
    notes.clear()
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    (folder,) = tmp_path.iterdir()
    folder.chmod(0o777)
    assert not jit_cache.find_place()
    assert numba.config.CACHE_DIR == ""
    assert notes == ["compiled code is not kept, and is compiled again by each process: no folder for it can be written; NUMBA_CACHE_DIR names one"]  # fmt: skip


def double(x: int) -> int:
    return 2 * x


def test_a_full_disk_is_a_note_with_its_path(
    notes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def full(self: Any, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)
    made = jit_cache.compiled()(double)
    assert made(21) == 42
    assert len(notes) == 1
    assert notes[0].startswith(f"compiled code cannot be kept in {tmp_path}")
    assert notes[0].endswith("No space left on device")
    monkeypatch.undo()
    monkeypatch.setattr(caching.IndexDataCacheFile, "load", full)
    assert jit_cache.compiled()(double)(4) == 8
