"""A source that changes while it is converted: an error, and no output, whenever and however it happens."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save_file

from int8conv.convert import watch
from int8conv.convert.converter import convert_checkpoint
from int8conv.convert.outliers.calibrate import calibrate
from int8conv.convert.watch import SourceWatch
from int8conv.errors import FileChangedError, Int8convError, NotFoundError
from int8conv.formats.int8.folder import open_converted
from int8conv.formats.int8.verify import verify

from ..checkpoints import LLAMA, edit_config, random_tensors, write_checkpoint
from ..formats.damage import rejected


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A source of three shards."""
    return write_checkpoint(tmp_path / "sharded", shards=3)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """The same model after another training step: all sizes are the same."""
    return write_checkpoint(tmp_path / "other", shards=3, seed=1)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def replace_all(source: Path, other: Path) -> None:
    for path in shards(source):
        shutil.copy(other / path.name, source / "new")
        (source / "new").replace(path)


def replace_the_last(source: Path, other: Path) -> None:
    shutil.copy(other / shards(source)[-1].name, source / "new")
    (source / "new").replace(shards(source)[-1])


def overwrite_all(source: Path, other: Path) -> None:
    for path in shards(source):
        with path.open("r+b") as file:
            file.write((other / path.name).read_bytes())


def overwrite_with_the_old_time(source: Path, other: Path) -> None:
    for path in shards(source):
        stat = path.stat()
        with path.open("r+b") as file:
            file.write((other / path.name).read_bytes())
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def change_the_first_weight(source: Path, other: Path) -> None:
    """One bit, in what was read already."""
    path = shards(source)[0]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    with path.open("r+b") as file:
        file.write(data)


def truncate_the_last(source: Path, other: Path) -> None:
    os.truncate(shards(source)[-1], 5000)


def remove_the_last(source: Path, other: Path) -> None:
    shards(source)[-1].unlink()


def remove_it(source: Path, other: Path) -> None:
    shutil.rmtree(source)


def change_the_config(source: Path, other: Path) -> None:
    edit_config(source, rms_norm_eps=1e-5)


def replace_the_index(source: Path, other: Path) -> None:
    path = source / "model.safetensors.index.json"
    path.write_text(path.read_text().replace("00003-of-00003", "00002-of-00003"))


CHANGES = [
    replace_all, replace_the_last, overwrite_all, overwrite_with_the_old_time, change_the_first_weight,
    truncate_the_last, remove_the_last, remove_it, change_the_config, replace_the_index,
]  # fmt: skip


def at(stage: str, share: float, act: Callable[[], None]) -> Callable[[str, int, int], None]:
    """A progress callback that does something once, at a share of a stage."""
    waiting = [act]

    def tell(now: str, done: int, total: int) -> None:
        if now == stage and done >= share * total and waiting:
            waiting.pop()()

    return tell


@pytest.mark.parametrize("share", [0, 0.5, 1])
@pytest.mark.parametrize("change", CHANGES)
def test_weights_of_two_checkpoints_are_never_mixed(
    sharded: Path, other: Path, tmp_path: Path, change: Callable[[Path, Path], None], share: float
) -> None:
    tell = at("convert", share, lambda: change(sharded, other))
    with pytest.raises(Int8convError) as caught:
        convert_checkpoint(sharded, tmp_path / "out", outliers="none", jobs=1, progress=tell)
    line = str(caught.value)
    assert str(sharded) in line, line
    assert "\n" not in line
    assert isinstance(caught.value, FileChangedError | NotFoundError), repr(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_source_that_changes_while_it_is_calibrated(
    sharded: Path, other: Path, tmp_path: Path
) -> None:
    """Else columns of one checkpoint would stand beside weights of another."""
    tell = at("calibrate", 0.5, lambda: replace_all(sharded, other))
    with pytest.raises(FileChangedError, match=str(sharded)):
        convert_checkpoint(sharded, tmp_path / "out", progress=tell)
    assert not (tmp_path / "out").exists()
    convert_checkpoint(sharded, tmp_path / "out")
    convert_checkpoint(other, tmp_path / "wanted")
    for path in (tmp_path / "wanted").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def test_statistics_of_a_source_that_changes(sharded: Path, other: Path) -> None:
    waiting = [True]

    def tell(stage: str, done: int, total: int) -> None:
        if done and waiting:
            waiting.pop()
            replace_all(sharded, other)

    with pytest.raises(FileChangedError, match=str(sharded)):
        calibrate(sharded, progress=tell)


def link(source: Path) -> None:
    """As a backup of hard links does."""
    for path in shards(source):
        path.with_suffix(".backup").hardlink_to(path)


def change_permissions(source: Path) -> None:
    for path in (*shards(source), source / "config.json"):
        path.chmod(0o600)


def write_beside(source: Path) -> None:
    (source / "train.log").write_text("step 5")
    save_file(random_tensors(LLAMA), source / "rng_state_0.safetensors")


def read(source: Path) -> None:
    for path in shards(source):
        path.read_bytes()


@pytest.mark.parametrize("act", [link, change_permissions, write_beside, read])
@pytest.mark.parametrize("share", [0, 1])
def test_what_does_not_change_it_does_not_stop_it(
    sharded: Path, tmp_path: Path, act: Callable[[Path], None], share: float
) -> None:
    tell = at("convert", share, lambda: act(sharded))
    convert_checkpoint(sharded, tmp_path / "out", outliers="none", jobs=1, progress=tell)
    verify(open_converted(tmp_path / "out"))


def test_after_a_change_the_same_command_starts_again(
    sharded: Path, other: Path, tmp_path: Path
) -> None:
    tell = at("convert", 0.5, lambda: overwrite_all(sharded, other))
    with pytest.raises(FileChangedError):
        convert_checkpoint(sharded, tmp_path / "out", outliers="none", jobs=1, progress=tell)
    assert convert_checkpoint(sharded, tmp_path / "out", outliers="none").resumed == 0
    convert_checkpoint(other, tmp_path / "wanted", outliers="none")
    for path in shards(tmp_path / "wanted"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def waits(monkeypatch: pytest.MonkeyPatch, folder: Path, now: int) -> float:
    """Seconds that a watch waits at a time."""
    slept = [0.0]
    monkeypatch.setattr(watch.time, "time_ns", lambda: now)
    monkeypatch.setattr(watch.time, "sleep", slept.append)
    SourceWatch(folder)
    return slept[-1]


def test_a_file_written_just_now_is_waited_for(
    sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until a second write to it could not have the same time."""
    last = max(max(p.stat().st_ctime_ns, p.stat().st_mtime_ns) for p in sharded.iterdir())
    second = 1_000_000_000
    if last % second:
        assert waits(monkeypatch, sharded, last + 5_000_000) == pytest.approx(0.015)
    assert waits(monkeypatch, sharded, last + 3 * second) == 0
    assert waits(monkeypatch, sharded, last - 3600 * second) == 0  # clocks that differ


def test_times_in_whole_seconds_are_waited_for_longer(
    sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (time.time_ns() // 1_000_000_000 + 100) * 1_000_000_000
    os.utime(shards(sharded)[0], ns=(whole, whole))
    assert waits(monkeypatch, sharded, whole + 500_000_000) == pytest.approx(1.5)


def test_a_folder_that_is_absent(tmp_path: Path) -> None:
    SourceWatch(tmp_path / "nowhere")
    with rejected(NotFoundError, "nowhere"):
        convert_checkpoint(tmp_path / "nowhere", tmp_path / "out")
