"""A folder appears whole or not at all: failures of every kind leave what was there; what was done waits in the workspace."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from int8conv.convert.converter import convert_checkpoint
from int8conv.errors import (
    Int8convError,
    NoSpaceError,
    NotWritableError,
    OutputBusyError,
    OutputError,
    OutputExistsError,
    OutputOverlapError,
)
from int8conv.formats.int8.folder import open_converted
from int8conv.formats.int8.manifest import FileRecord, Manifest, read_manifest
from int8conv.formats.int8.verify import verify
from int8conv.formats.int8.workspace import open_workspace
from int8conv.formats.int8.writer import write_file
from int8conv.formats.json_file import dump_json

from ..damage import MANIFEST, rejected


def manifest(generator: str, *files: str) -> str:
    """The text of a manifest that opens."""
    records = {name: FileRecord(0, "0" * 32) for name in files}
    return dump_json(Manifest(generator, {}, {}, None, (), files=records).to_json()).decode()


OLD, NEW, THEIRS = manifest("old"), manifest("new"), manifest("theirs")


class Stop(Exception):
    """Raised by a test within the block."""


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """An empty folder for the output and whatever is left beside it."""
    folder = tmp_path / "room"
    folder.mkdir()
    return folder


@pytest.fixture
def old(room: Path) -> Path:
    """A converted folder, as far as the writer can tell, where the output should go."""
    folder = room / "out"
    folder.mkdir()
    (folder / MANIFEST).write_text(OLD)
    return folder


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder and its text; folders end in a slash."""
    return {
        str(path.relative_to(folder)) + "/" * path.is_dir(): path.read_text(errors="replace")
        if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }  # fmt: skip


def visible(folder: Path) -> dict[str, str]:
    """All of that but the workspace of an unfinished attempt."""
    return {
        name: text for name, text in tree(folder).items() if not name.startswith(".out.partial/")
    }


@contextmanager
def staged(out: Path, *, force: bool = False) -> Iterator[Path]:
    """The folder of a workspace, committed at the end of the block."""
    with open_workspace(out, force=force) as workspace:
        yield workspace.folder
        workspace.commit()


def produce(out: Path, *, force: bool = False, text: str = NEW) -> None:
    with staged(out, force=force) as staging:
        write_file(staging / MANIFEST, text.encode())


@pytest.mark.rule("F8")
def test_a_folder_appears_at_the_end_of_the_block(room: Path) -> None:
    out = room / "out"
    with staged(out) as staging:
        assert not out.exists()
        assert staging.parent.parent == room
        write_file(staging / "a.txt", b"a")
        assert not out.exists()
    assert tree(room) == {"out/": "", "out/a.txt": "a"}


@pytest.mark.rule("F8")
@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing(room: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), staged(room / "out") as staging:
        write_file(staging / "a.txt", b"a")
        (staging / "sub").mkdir()
        raise error
    assert visible(room) == {}


def test_folders_above_the_output_are_made(room: Path) -> None:
    produce(room / "a" / "b" / "out")
    assert tree(room) == {"a/": "", "a/b/": "", "a/b/out/": "", f"a/b/out/{MANIFEST}": NEW}


def test_a_relative_path_and_a_change_of_folder(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(room)
    with staged(Path("out")) as staging:
        monkeypatch.chdir(tmp_path)
        write_file(staging / "a.txt", b"a")
    assert tree(room) == {"out/": "", "out/a.txt": "a"}


def test_an_existing_output_is_untouched_without_force(old: Path) -> None:
    with rejected(OutputExistsError, str(old), "--force"):
        produce(old)
    assert tree(old.parent) == {"out/": "", f"out/{MANIFEST}": OLD}


@pytest.mark.rule("F8")
def test_force_replaces_a_converted_folder(old: Path) -> None:
    (old / MANIFEST).write_text(manifest("old", "other.txt"))
    (old / "other.txt").write_text("old")
    with staged(old, force=True) as staging:
        assert (old / MANIFEST).read_text() == manifest("old", "other.txt")
        write_file(staging / MANIFEST, NEW.encode())
    assert tree(old.parent) == {"out/": "", f"out/{MANIFEST}": NEW}


@pytest.mark.rule("F8")
def test_force_keeps_the_old_folder_when_the_block_fails(old: Path) -> None:
    with pytest.raises(Stop), staged(old, force=True) as staging:
        write_file(staging / MANIFEST, NEW.encode())
        raise Stop
    assert visible(old.parent) == {"out/": "", f"out/{MANIFEST}": OLD}


def make_empty_folder(out: Path) -> None:
    out.mkdir()


def make_foreign_folder(out: Path) -> None:
    out.mkdir()
    (out / "thesis.txt").write_text("the only copy")


def make_file(out: Path) -> None:
    out.write_text("the only copy")


def make_link(out: Path) -> None:
    target = out.with_name("target")
    target.mkdir()
    (target / MANIFEST).write_text(OLD)
    out.symlink_to(target)


def make_dangling_link(out: Path) -> None:
    out.symlink_to(out.with_name("nowhere"))


FOREIGN = [make_empty_folder, make_foreign_folder, make_file, make_link, make_dangling_link]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("make", FOREIGN)
def test_what_is_not_a_converted_folder_is_never_replaced(
    room: Path, make: Callable[[Path], None], force: bool
) -> None:
    make(room / "out")
    before = tree(room)
    with rejected(OutputExistsError, str(room / "out")):
        produce(room / "out", force=force)
    assert tree(room) == before


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("make", FOREIGN)
def test_nor_is_what_came_to_be_in_the_meantime(
    room: Path, make: Callable[[Path], None], force: bool
) -> None:
    with (
        rejected(OutputExistsError, str(room / "out")),
        staged(room / "out", force=force) as staging,
    ):
        write_file(staging / MANIFEST, NEW.encode())
        make(room / "out")
        before = tree(room)
    assert visible(room) == {n: t for n, t in before.items() if not n.startswith(".out.partial/")}


def test_a_converted_folder_of_the_meantime_needs_force_too(room: Path) -> None:
    with rejected(OutputExistsError, str(room / "out")), staged(room / "out") as staging:
        write_file(staging / MANIFEST, NEW.encode())
        (room / "out").mkdir()
        (room / "out" / MANIFEST).write_text(THEIRS)
    assert visible(room) == {"out/": "", f"out/{MANIFEST}": THEIRS}


@pytest.fixture
def umask() -> Iterator[Callable[[int], None]]:
    before = os.umask(0o022)
    yield os.umask  # type: ignore[misc]
    os.umask(before)


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077, 0o027])
def test_permissions_follow_the_umask(
    room: Path, source: Path, umask: Callable[[int], None], mask: int
) -> None:
    umask(mask)
    convert_checkpoint(source, room / "out", outliers="none")
    assert stat.S_IMODE((room / "out").stat().st_mode) == 0o777 & ~mask
    for path in (room / "out").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask, path.name


ERRORS = [
    (errno.ENOSPC, NoSpaceError),
    (errno.EDQUOT, NoSpaceError),
    (errno.EFBIG, NoSpaceError),
    (errno.EACCES, NotWritableError),
    (errno.EPERM, NotWritableError),
    (errno.EROFS, NotWritableError),
    (errno.EIO, OutputError),
]


def failing(number: int, *, after: int = 0, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, until it was called ``after`` times; then the operating system's error."""
    calls = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(number, os.strerror(number))
        return function(*args, **kwargs)

    return call


@pytest.mark.rule("F8")
@pytest.mark.parametrize(("number", "error"), ERRORS)
@pytest.mark.parametrize(
    ("name", "after"),
    [("pwrite", 0), ("pwrite", 3), ("pwrite", 30), ("ftruncate", 0), ("fsync", 0), ("fsync", 2)],
)
def test_errors_of_the_system_are_named_and_leave_nothing(
    room: Path,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    after: int,
    number: int,
    error: type[Int8convError],
) -> None:
    out = room / "out"
    monkeypatch.setattr(os, name, failing(number, after=after, function=getattr(os, name)))
    with rejected(error, str(out)):
        convert_checkpoint(source, out, outliers="none")
    assert visible(room) == {}


@pytest.mark.parametrize(("number", "error"), ERRORS)
def test_a_staging_folder_that_cannot_be_made(
    room: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Int8convError]
) -> None:
    monkeypatch.setattr(Path, "mkdir", failing(number, after=1, function=Path.mkdir))
    with rejected(error, str(room / "out")):
        produce(room / "out")
    assert visible(room) == {}


@pytest.mark.parametrize(("number", "error"), ERRORS)
@pytest.mark.parametrize("renames", [0, 1])
def test_a_rename_that_fails_keeps_the_old_folder(
    old: Path,
    monkeypatch: pytest.MonkeyPatch,
    renames: int,
    number: int,
    error: type[Int8convError],
) -> None:
    """The first rename moves the old folder away, the second puts the new one in its place."""
    rename = Path.rename
    calls = 0

    def fail_once(path: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == renames + 1:
            raise OSError(number, os.strerror(number))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with rejected(error, str(old)):
        produce(old, force=True)
    assert visible(old.parent) == {"out/": "", f"out/{MANIFEST}": OLD}


def test_a_file_where_a_folder_should_be(room: Path) -> None:
    (room / "file").write_text("x")
    with rejected(NotWritableError, str(room / "file" / "out")):
        produce(room / "file" / "out")
    assert tree(room) == {"file": "x"}


def test_a_name_that_is_too_long(room: Path) -> None:
    with rejected(OutputError, "x" * 300):
        produce(room / ("x" * 300))
    assert visible(room) == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(room: Path) -> None:
    room.chmod(0o555)
    try:
        with rejected(NotWritableError, str(room / "out")):
            produce(room / "out")
    finally:
        room.chmod(0o755)


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
from int8conv.convert.converter import convert_checkpoint
from int8conv.errors import NoSpaceError
try:
    convert_checkpoint(sys.argv[1], sys.argv[2], outliers="none")
except NoSpaceError as error:
    print(error)
"""


@pytest.mark.rule("F8")
def test_a_real_limit_on_file_sizes(room: Path, source: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(source), str(room / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{room / 'out'}: no space left")
    assert visible(room) == {}


def test_a_folder_that_is_no_workspace_is_not_taken_for_one(room: Path, source: Path) -> None:
    (room / ".out.partial").mkdir()
    (room / ".out.partial" / "thesis.txt").write_text("the only copy")
    with rejected(OutputExistsError, str(room / ".out.partial")):
        convert_checkpoint(source, room / "out", outliers="none")
    assert tree(room) == {".out.partial/": "", ".out.partial/thesis.txt": "the only copy"}


def test_two_writers_of_one_output(room: Path) -> None:
    with staged(room / "out"):
        with rejected(OutputBusyError, str(room / "out")):
            produce(room / "out")
        produce(room / "other")


@pytest.mark.parametrize("renamed", [False, True])
def test_a_kill_between_the_renames_of_force(old: Path, renamed: bool) -> None:
    """The old folder is put back, or is gone if the new one is in its place."""
    with open_workspace(old, force=True) as workspace:
        old.rename(workspace.path / "replaced")
        if renamed:
            write_file(workspace.folder / MANIFEST, NEW.encode())
            workspace.folder.rename(old)
    produce(old.with_name("another"))
    with pytest.raises(Stop), open_workspace(old, force=True) as workspace:
        assert (old / MANIFEST).read_text() == (NEW if renamed else OLD)
        assert not (workspace.path / "replaced").exists()
        raise Stop
    produce(old, force=True, text=manifest("newest"))
    assert (old / MANIFEST).read_text() == manifest("newest")


@pytest.mark.parametrize("output", ["stays", "is removed"])
def test_a_kill_while_what_was_replaced_is_removed(
    old: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    """Half of it is no output any more: it is neither put back nor a reason to refuse."""

    def killed(folder: Path, **_: Any) -> None:
        (folder / MANIFEST).unlink()
        raise Stop

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(Stop):
        produce(old, force=True, text=NEW)
    monkeypatch.undo()
    assert (old / MANIFEST).read_text() == NEW
    assert old.with_name(f".{old.name}.partial").exists()
    if output == "is removed":
        shutil.rmtree(old)
    produce(old, force=True, text=manifest("newest"))
    assert (old / MANIFEST).read_text() == manifest("newest")
    assert not old.with_name(f".{old.name}.partial").exists()


def test_everything_is_flushed_before_the_rename(
    room: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    at_rename: list[int] = []
    fsync, rename = os.fsync, Path.rename

    def record_fsync(fd: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        fsync(fd)

    def record_rename(path: Path, target: Path) -> Path:
        at_rename.append(len(flushed))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "rename", record_rename)
    convert_checkpoint(source, room / "out", outliers="none")
    (count,) = at_rename
    assert {path.name for path in (room / "out").iterdir()} < set(flushed[:count])
    assert flushed[count - 1] == "folder"
    assert flushed[count:] == ["room"]


def workspace_of(room: Path, *names: str) -> Path:
    """A workspace that an earlier attempt left, with files of those names in its folder."""
    with pytest.raises(Stop), open_workspace(room / "out") as workspace:
        for name in names:
            write_file(workspace.folder / name, b"left")
        raise Stop
    return room / ".out.partial"


def linked_workspace(room: Path, elsewhere: Path) -> None:
    (room / ".out.partial").rename(elsewhere / "workspace")
    (room / ".out.partial").symlink_to(elsewhere / "workspace")


def linked_folder(room: Path, elsewhere: Path) -> None:
    (room / ".out.partial" / "folder").rmdir()
    (room / ".out.partial" / "folder").symlink_to(elsewhere)


def linked_replaced(room: Path, elsewhere: Path) -> None:
    (room / ".out.partial" / "replaced").symlink_to(elsewhere)


def a_file_for_a_folder(room: Path, elsewhere: Path) -> None:
    (room / ".out.partial" / "folder").rmdir()
    (room / ".out.partial" / "folder").hardlink_to(elsewhere / "thesis.txt")


def a_foreign_file(room: Path, elsewhere: Path) -> None:
    (room / ".out.partial" / "thesis.txt").write_text("the only copy")


def no_lock(room: Path, elsewhere: Path) -> None:
    (room / ".out.partial" / "lock").unlink()


@pytest.mark.parametrize(
    "tamper",
    [
        linked_workspace,
        linked_folder,
        linked_replaced,
        a_file_for_a_folder,
        a_foreign_file,
        no_lock,
    ],
)
def test_a_workspace_that_was_tampered_with_is_none(
    room: Path, tmp_path: Path, source: Path, tamper: Callable[[Path, Path], None]
) -> None:
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (elsewhere / "thesis.txt").write_text("the only copy")
    workspace_of(room)
    tamper(room, elsewhere)
    before = tree(tmp_path)
    with rejected(OutputExistsError, str(room / ".out.partial"), "not an int8conv workspace"):
        convert_checkpoint(source, room / "out", outliers="none")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("link", ["symbolic", "hard"])
@pytest.mark.parametrize("name", ["lock", "journal.jsonl", "folder/model-00001-of-00001.safetensors", "folder/config.json", "folder/int8conv.json"])  # fmt: skip
def test_nothing_is_written_through_a_link_in_a_workspace(
    room: Path, tmp_path: Path, source: Path, name: str, link: str
) -> None:
    (theirs := tmp_path / "theirs").write_text("the only copy")
    path = workspace_of(room) / name
    path.unlink(missing_ok=True)
    if link == "hard":
        path.hardlink_to(theirs)
    else:
        path.symlink_to(theirs)
    convert_checkpoint(source, room / "out", outliers="none")
    assert theirs.read_text() == "the only copy"
    assert not any(path.is_symlink() for path in (room / "out").iterdir())
    verify(open_converted(room / "out"))


def test_what_an_earlier_attempt_left_does_not_become_output(room: Path, source: Path) -> None:
    left = workspace_of(room, "model-00001-of-00002.safetensors", "tokenizer.model")
    (left / "folder" / "inner").mkdir()
    (left / "folder" / "link").symlink_to("/etc")
    convert_checkpoint(source, room / "out", outliers="none")
    manifest = read_manifest(room / "out")
    assert {path.name for path in (room / "out").iterdir()} == {MANIFEST, *manifest.files}


def test_force_checks_again_when_nobody_can_add_to_the_folder(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file comes to be between the check and the rename: all is put back."""
    rename = Path.rename

    def add(path: Path, target: Path) -> Path:
        if path == old and target.name == "replaced":
            (old / "thesis.txt").write_text("the only copy")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", add)
    with rejected(OutputExistsError, str(old), "thesis.txt"):
        produce(old, force=True)
    assert visible(old.parent) == {
        "out/": "", f"out/{MANIFEST}": OLD, "out/thesis.txt": "the only copy",
    }  # fmt: skip


def test_the_source_is_never_replaced(room: Path, example: Path) -> None:
    """Not even one that looks like an output, nor a folder that does and holds it."""
    box = room / "box"
    model = Path(shutil.copytree(example, box / "model"))
    (model / MANIFEST).write_text(manifest("x", *(path.name for path in model.iterdir())))
    (box / MANIFEST).write_text(manifest("x", "model"))
    before = tree(room)
    for out in (model, box):
        with rejected(OutputOverlapError, str(out)):
            convert_checkpoint(model, out, force=True, outliers="none")
        with rejected(OutputOverlapError, str(out)):
            produce_from(model, out)
    assert tree(room) == before


def produce_from(source: Path, out: Path) -> None:
    with open_workspace(out, force=True, source=source) as workspace:
        workspace.commit()


def test_the_lock_of_a_removed_workspace_is_none(
    room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner finishes between the moment that the lock is opened and that in which it is taken."""
    flock = fcntl.flock

    def finish(fd: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        shutil.rmtree(room / ".out.partial")
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", finish)
    with rejected(OutputBusyError, str(room / "out")):
        produce(room / "out")
    assert tree(room) == {}
    produce(room / "out")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks(
    room: Path, source: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(number, function=fcntl.flock))
    report = convert_checkpoint(source, room / "out", outliers="none")
    assert any("no locks" in note for note in report.notes)
    verify(open_converted(room / "out"))
    assert [path.name for path in room.iterdir()] == ["out"]


def test_without_locks_only_the_last_writer_ends(
    room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOSYS, function=fcntl.flock))
    with pytest.raises(Stop), open_workspace(room / "out") as second:
        with rejected(OutputBusyError, str(room / "out")), open_workspace(room / "out") as first:
            write_file(first.folder / MANIFEST, NEW.encode())
            with pytest.raises(Stop), open_workspace(room / "out"):
                raise Stop
            first.commit()
        assert not (room / "out").exists()
        assert second.folder.exists()
        raise Stop


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF])
def test_a_file_system_that_cannot_flush_folders(
    room: Path, source: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fsync = os.fsync

    def fail_for_folders(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", fail_for_folders)
    report = convert_checkpoint(source, room / "out", outliers="none")
    assert [note for note in report.notes if "cannot flush folders" in note] == list(report.notes)[-1:]  # fmt: skip
    verify(open_converted(room / "out"))


def test_an_output_in_place_that_cannot_be_flushed_is_a_note(
    room: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No error: it would say that there is no output."""
    fsync = os.fsync

    def fail_for_the_parent(fd: int) -> None:
        if os.path.samestat(os.fstat(fd), room.stat()):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", fail_for_the_parent)
    report = convert_checkpoint(source, room / "out", outliers="none")
    assert report.notes[-1].startswith("the output may not survive a power loss")
    assert [path.name for path in room.iterdir()] == ["out"]


@pytest.mark.parametrize("length", [246, 250, 255])
def test_an_output_whose_name_is_long(room: Path, source: Path, length: int) -> None:
    out = room / ("x" * length)
    convert_checkpoint(source, out, outliers="none")
    verify(open_converted(out))
    assert list(room.iterdir()) == [out]
