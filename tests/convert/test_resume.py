"""A conversion that was stopped goes on: only what is missing is done again, and the bytes are the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from int8conv.convert.converter import ConvertReport, convert_checkpoint
from int8conv.convert.journal import JOURNAL_FILE, Journal
from int8conv.convert.outliers.calibrate import calibrate
from int8conv.errors import NoSpaceError, NotFoundError
from int8conv.formats.int8.folder import open_converted
from int8conv.formats.int8.stats import Stats, write_stats
from int8conv.formats.int8.verify import verify
from int8conv.formats.safetensors.checksum import checksum
from int8conv.formats.safetensors.header import read_header

from ..checkpoints import LLAMA, edit_config, random_tensors

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
    assert any("started over" in note for note in report.notes)


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
    with closing(Journal(tmp_path, "a")) as journal:
        journal.record("x", 1)
        journal.record("x", 2)
    with closing(Journal(tmp_path, "a")) as journal:
        assert journal.entries == {"x": 2}


def test_another_fingerprint_starts_an_empty_journal(tmp_path: Path) -> None:
    with closing(Journal(tmp_path, "a")) as journal:
        journal.record("x", 1)
    with closing(Journal(tmp_path, "b")) as journal:
        pass
    assert (journal.resumed, journal.outdated, journal.entries) == (False, True, {})
    assert json.loads((tmp_path / JOURNAL_FILE).read_text()) == {"fingerprint": "b"}


def test_each_checksum_of_a_tensor_has_to_match(source: Path, stopped: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:  # fmt: skip
    """Codes that are whole do not make up for a scale that is not: one wrong value in every scale that was written."""
    (shard,) = (stopped / "folder").glob("*.safetensors")
    header = read_header(shard)
    data = bytearray(shard.read_bytes())
    for name, info in header.tensors.items():
        if name.endswith(".weight_scale"):
            data[header.payload_offset + info.begin] ^= 1
    shard.write_bytes(data)
    go_on(source, tmp_path)
    assert contents(tmp_path / "out") == expected


def test_a_changed_config_is_noticed(source: Path, stopped: Path, tmp_path: Path) -> None:
    edit_config(source, rms_norm_eps=1e-5)
    report = go_on(source, tmp_path)
    assert report.resumed == 0
    assert any("started over" in note for note in report.notes)
    convert_checkpoint(source, tmp_path / "fresh", outliers="none")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_changed_tokenizer_is_noticed(source: Path, stopped: Path, tmp_path: Path) -> None:
    (source / "tokenizer_config.json").write_text("{}")
    assert go_on(source, tmp_path).resumed == 0


def scaled(stats: Stats, factor: float) -> Stats:
    """Statistics of which the first channels of every input stand out so much more."""
    inputs = {}
    for path, found in stats.inputs.items():
        absmax, squares, fourths = (x.copy() for x in (found.absmax, found.squares, found.fourths))
        absmax[:16] *= factor
        squares[:, :16] *= factor**2
        fourths[:, :16] *= factor**4
        inputs[path] = replace(found, absmax=absmax, squares=squares, fourths=fourths)
    return replace(stats, inputs=inputs)


def test_other_statistics_are_noticed(source: Path, tmp_path: Path) -> None:
    """The file's contents count, not its name."""
    measured, file = calibrate(source), tmp_path / "stats"
    write_stats(measured, file)

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "convert" and done >= total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(source, tmp_path / "out", stats=file, jobs=1, progress=stop)
    write_stats(scaled(measured, 1000), file)
    report = convert_checkpoint(source, tmp_path / "out", stats=file)
    assert report.resumed == 0
    convert_checkpoint(source, tmp_path / "fresh", stats=file)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")
    write_stats(measured, file)
    convert_checkpoint(source, tmp_path / "first", stats=file)
    assert contents(tmp_path / "first") != contents(tmp_path / "fresh")  # so that it matters


def test_a_source_whose_time_was_set_back_is_read_again(
    source: Path, stopped: Path, tmp_path: Path
) -> None:
    """As by rsync or cp -p: same size, same time, same inode, other weights."""
    file = source / "model.safetensors"
    stat = file.stat()
    save_file(random_tensors(LLAMA, seed=1), tmp_path / "other", {"format": "pt"})
    assert (tmp_path / "other").stat().st_size == stat.st_size
    with file.open("r+b") as opened:
        opened.write((tmp_path / "other").read_bytes())
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    report = go_on(source, tmp_path)
    assert report.resumed == 0
    convert_checkpoint(source, tmp_path / "fresh", outliers="none")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def an_unknown_field(value: dict[str, Any]) -> None:
    value["command"] = "rm"


def no_checksums(value: dict[str, Any]) -> None:
    value["checksums"] = {}


def other_checksums(value: dict[str, Any]) -> None:
    value["checksums"] = ["a"]


def a_negative_count(value: dict[str, Any]) -> None:
    value["rounded"] = -1


def a_count_of_another_type(value: dict[str, Any]) -> None:
    value["rounded"] = "many"


def an_infinite_error(value: dict[str, Any]) -> None:
    value["max_error"] = 1e999


def a_text_for_an_error(value: dict[str, Any]) -> None:
    value["sqnr_db"] = "good"


def nothing(value: dict[str, Any]) -> None:
    value.clear()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        an_unknown_field, no_checksums, other_checksums, a_negative_count, a_count_of_another_type,
        an_infinite_error, a_text_for_an_error, nothing,
    ],
)  # fmt: skip
def test_a_tampered_journal_costs_time_only(
    source: Path,
    stopped: Path,
    tmp_path: Path,
    expected: dict[str, bytes],
    change: Callable[[dict[str, Any]], None],
    signed: bool,
) -> None:
    """Changed by hand, or by somebody who knows how lines are summed."""
    lines = [json.loads(line) for line in (stopped / JOURNAL_FILE).read_text().splitlines()]
    fingerprint = lines[0]["fingerprint"]
    for line in lines[1:]:
        change(line["value"])
        if signed:
            body = json.dumps({"key": line["key"], "value": line["value"]})
            line["sum"] = checksum(f"{fingerprint} {body}".encode())
    (stopped / JOURNAL_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert go_on(source, tmp_path).resumed == 0
    assert contents(tmp_path / "out") == expected


@pytest.mark.parametrize(
    "text", [b"\0" * 1000, b"[" * 100_000 + b"\n", b'{"fingerprint": []}\n', b"null\n", b"\xff\xfe\n"]
)  # fmt: skip
def test_a_journal_that_is_none_costs_time_only(
    source: Path, stopped: Path, tmp_path: Path, expected: dict[str, bytes], text: bytes
) -> None:
    (stopped / JOURNAL_FILE).write_bytes(text)
    assert go_on(source, tmp_path).resumed == 0
    assert contents(tmp_path / "out") == expected


def test_a_journal_of_any_length_is_not_read_into_memory(
    source: Path, stopped: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    os.truncate(stopped / JOURNAL_FILE, 1 << 40)  # a sparse file
    assert go_on(source, tmp_path).resumed == 0
    assert contents(tmp_path / "out") == expected


def test_lines_go_on_where_the_whole_ones_end(tmp_path: Path) -> None:
    with closing(Journal(tmp_path, "a")) as journal:
        journal.record("x", 1)
    with (tmp_path / JOURNAL_FILE).open("ab") as file:
        file.write(b'{"key": "y", "val')
    with closing(Journal(tmp_path, "a")) as journal:
        journal.record("z", 3)
    with closing(Journal(tmp_path, "a")) as journal:
        assert journal.entries == {"x": 1, "z": 3}
