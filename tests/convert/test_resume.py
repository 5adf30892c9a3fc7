"""A conversion that was stopped goes on: only what is missing is done again, and the bytes are the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from int8conv.convert.converter import ConvertReport, convert_checkpoint
from int8conv.convert.journal import JOURNAL_FILE, Journal
from int8conv.errors import NoSpaceError, NotFoundError
from int8conv.formats.int8.folder import open_converted
from int8conv.formats.int8.verify import verify

WORKSPACE = ".out.partial"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def expected(source: Path, tmp_path: Path) -> dict[str, bytes]:
    """What an undisturbed run writes."""
    convert_checkpoint(source, tmp_path / "expected", outliers="none")
    return contents(tmp_path / "expected")


@pytest.fixture
def stopped(source: Path, tmp_path: Path) -> Path:
    """The workspace of a run that was interrupted half way; one job, so that it is the same half each time."""

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "convert" and done >= total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(source, tmp_path / "out", outliers="none", jobs=1, progress=stop)
    return tmp_path / WORKSPACE


def go_on(source: Path, tmp_path: Path) -> ConvertReport:
    report = convert_checkpoint(source, tmp_path / "out", outliers="none")
    assert not (tmp_path / WORKSPACE).exists()
    return report


def test_only_what_is_missing_is_done_again(
    source: Path, stopped: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    recorded = len((stopped / JOURNAL_FILE).read_text().splitlines()) - 1
    report = go_on(source, tmp_path)
    assert report.resumed == recorded > 3
    assert report.tensors > report.resumed
    assert contents(tmp_path / "out") == expected


def damage_shard(workspace: Path) -> None:
    (shard,) = (workspace / "folder").glob("*.safetensors")
    data = bytearray(shard.read_bytes())
    data[4096:8192] = bytes(4096)  # a page that was never written: a power loss
    shard.write_bytes(data)


def empty_shard(workspace: Path) -> None:
    (shard,) = (workspace / "folder").glob("*.safetensors")
    shard.write_bytes(b"")


def no_shard(workspace: Path) -> None:
    (shard,) = (workspace / "folder").glob("*.safetensors")
    shard.unlink()


def cut_journal(workspace: Path) -> None:
    journal = workspace / JOURNAL_FILE
    journal.write_bytes(journal.read_bytes()[:-20])


def spoil_journal(workspace: Path) -> None:
    journal = workspace / JOURNAL_FILE
    journal.write_bytes(journal.read_bytes() + b'{"key": "x"}\n\xff\0\n')


def empty_journal(workspace: Path) -> None:
    (workspace / JOURNAL_FILE).write_bytes(b"")


@pytest.mark.parametrize(
    "damage", [damage_shard, empty_shard, no_shard, cut_journal, spoil_journal, empty_journal]
)
def test_a_damaged_workspace_costs_time_only(
    source: Path,
    stopped: Path,
    tmp_path: Path,
    expected: dict[str, bytes],
    damage: Callable[[Path], None],
) -> None:
    damage(stopped)
    go_on(source, tmp_path)
    assert contents(tmp_path / "out") == expected


def test_a_changed_source_is_noticed(source: Path, stopped: Path, tmp_path: Path) -> None:
    file = source / "model.safetensors"
    stat = file.stat()
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    report = go_on(source, tmp_path)
    assert report.resumed == 0
    assert any("started again" in note for note in report.notes)


def test_another_option_is_noticed(source: Path, stopped: Path, tmp_path: Path) -> None:
    report = convert_checkpoint(source, tmp_path / "out", outliers="none", max_shard_bytes=1)
    assert report.resumed == 0
    convert_checkpoint(source, tmp_path / "expected", outliers="none", max_shard_bytes=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_calibration_is_not_repeated(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "convert":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(source, tmp_path / "out", progress=stop)
    convert_checkpoint(source, tmp_path / "expected")
    monkeypatch.delattr("int8conv.convert.outliers.calibrate.calibrate")
    convert_checkpoint(source, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_a_full_disk_and_then_space(
    source: Path, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite, left = os.pwrite, 60_000

    def fill(fd: int, data: memoryview, offset: int) -> int:
        nonlocal left
        if left <= 0:
            raise OSError(28, "No space left on device")
        left -= (count := pwrite(fd, data, offset))
        return count

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fill)
        with pytest.raises(NoSpaceError, match="run the same command again"):
            convert_checkpoint(source, tmp_path / "out", outliers="none", jobs=1)
    assert go_on(source, tmp_path).resumed > 0
    assert contents(tmp_path / "out") == expected


def test_an_unreadable_source_and_then_a_readable_one(
    source: Path, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv, calls = os.preadv, 0

    def fail(*args: object) -> int:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise OSError(5, "Input/output error")
        return preadv(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", fail)
        with pytest.raises(NotFoundError, match=r"model\.safetensors: tensor '.*cannot be read"):
            convert_checkpoint(source, tmp_path / "out", outliers="none", jobs=1)
    report = go_on(source, tmp_path)
    assert 0 < report.resumed < report.tensors
    assert contents(tmp_path / "out") == expected


@pytest.mark.parametrize("delay_calls", [0, 1, 7, 19])
def test_a_kill_at_a_write(
    source: Path, tmp_path: Path, expected: dict[str, bytes], delay_calls: int
) -> None:
    """SIGKILL in the middle, at a number of writes; ``benchmarks/kill.py`` does it at random moments."""
    code = f"""
import os, signal, sys
from int8conv.convert.converter import convert_checkpoint
pwrite, calls = os.pwrite, 0
def count(*args):
    global calls
    calls += 1
    if calls > {delay_calls}:
        os.kill(os.getpid(), signal.SIGKILL)
    return pwrite(*args)
os.pwrite = count
convert_checkpoint(sys.argv[1], sys.argv[2], outliers="none", jobs=1)
"""
    done = subprocess.run([sys.executable, "-c", code, source, tmp_path / "out"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    go_on(source, tmp_path)
    assert contents(tmp_path / "out") == expected
    verify(open_converted(tmp_path / "out"))


def test_the_last_line_of_a_key_counts(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a")
    journal.record("x", 1)
    journal.record("x", 2)
    assert Journal(tmp_path, "a").entries == {"x": 2}


def test_another_fingerprint_starts_an_empty_journal(tmp_path: Path) -> None:
    Journal(tmp_path, "a").record("x", 1)
    journal = Journal(tmp_path, "b")
    assert (journal.resumed, journal.outdated, journal.entries) == (False, True, {})
    assert json.loads((tmp_path / JOURNAL_FILE).read_text()) == {"fingerprint": "b"}
