"""Only regular files are opened, no link leads out of a folder, and nothing is written through another name."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from int8conv.formats.regular_file import (
    open_regular,
    open_to_write,
    open_within,
    read_at_most,
    write_all,
)


def text_of(fd: int) -> str:
    try:
        return read_at_most(fd, 1000).decode()
    finally:
        os.close(fd)


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.mkdir()


def make_device_link(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [make_fifo, make_folder, make_device_link])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "x")
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(tmp_path / "x")


def test_a_fifo_that_somebody_reads_is_not_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x")
    reader = os.open(tmp_path / "x", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(OSError, match="not a regular file"):
            open_regular(tmp_path / "x", os.O_WRONLY)
    finally:
        os.close(reader)


def test_links_are_followed_unless_told_not_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to("file")
    assert text_of(open_regular(tmp_path / "link")) == "text"
    with pytest.raises(OSError, match="is a symbolic link"):
        open_regular(tmp_path / "link", follow=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file, and a private file outside of it."""
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").write_text("inside")
    (tmp_path / "private").write_text("private")
    return folder


@pytest.mark.parametrize("target", ["inner/file", "inner/../inner/file", "../folder/inner/file"])
def test_a_link_within_the_folder_is_followed(folder: Path, target: str) -> None:
    (folder / "LICENSE").symlink_to(target)
    assert text_of(open_within(folder, "LICENSE")) == "inside"


def absolute(folder: Path) -> None:
    (folder / "LICENSE").symlink_to(folder.parent / "private")


def relative(folder: Path) -> None:
    (folder / "LICENSE").symlink_to("../private")


def by_a_folder(folder: Path) -> None:
    (folder / "up").symlink_to("..")
    (folder / "LICENSE").symlink_to("up/private")


def to_a_folder_of_similar_name(folder: Path) -> None:
    (beside := folder.with_name("folder2")).mkdir()
    (beside / "x").write_text("private")
    (folder / "LICENSE").symlink_to("../folder2/x")


@pytest.mark.parametrize("link", [absolute, relative, by_a_folder, to_a_folder_of_similar_name])
def test_a_link_out_of_the_folder_is_not(folder: Path, link: Callable[[Path], None]) -> None:
    link(folder)
    with pytest.raises(OSError, match="leads out of its folder"):
        open_within(folder, "LICENSE")


def test_a_name_out_of_the_folder_is_not(folder: Path) -> None:
    with pytest.raises(OSError, match="leads out of its folder"):
        open_within(folder, "../private")


def test_a_folder_that_is_a_link_itself(folder: Path) -> None:
    folder.with_name("other").symlink_to(folder)
    (folder / "LICENSE").symlink_to("inner/file")
    assert text_of(open_within(folder.with_name("other"), "LICENSE")) == "inside"


def test_a_part_that_becomes_a_link_meanwhile_is_not_followed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looking where a path leads and opening it."""
    (outside := folder.with_name("outside")).mkdir()
    (outside / "file").write_text("private")
    realpath = os.path.realpath

    def swap(path: str) -> str:
        found = realpath(path)
        if found.endswith("file"):
            (folder / "inner").rename(folder / "moved")
            (folder / "inner").symlink_to(outside)
        return found

    monkeypatch.setattr(os.path, "realpath", swap)
    with pytest.raises(OSError, match=r"[Nn]ot a directory|symbolic link"):
        open_within(folder, "inner/file")


def test_a_snapshot_of_the_hub_is_made_of_links(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "abc").write_text("a blob")
    (tmp_path / "private").write_text("private")
    (snapshot / "LICENSE").symlink_to("../../blobs/abc")
    (snapshot / "NOTICE").symlink_to("../../../private")
    assert text_of(open_within(snapshot, "LICENSE")) == "a blob"
    with pytest.raises(OSError, match="leads out of its folder"):
        open_within(snapshot, "NOTICE")


def test_a_file_of_ones_own_is_written_in_place(tmp_path: Path) -> None:
    for text in ("longer", "abc"):
        fd = open_to_write(tmp_path / "x")
        write_all(fd, text.encode())
        os.close(fd)
    assert (tmp_path / "x").read_text() == "abcger"


def symbolic(path: Path, target: Path) -> None:
    path.symlink_to(target)


def hard(path: Path, target: Path) -> None:
    path.hardlink_to(target)


@pytest.mark.parametrize("link", [symbolic, hard])
def test_nothing_is_written_through_another_name(
    tmp_path: Path, link: Callable[[Path, Path], None]
) -> None:
    (tmp_path / "theirs").write_text("the only copy")
    link(tmp_path / "x", tmp_path / "theirs")
    fd = open_to_write(tmp_path / "x")
    write_all(fd, b"ours")
    os.close(fd)
    assert (tmp_path / "theirs").read_text() == "the only copy"
    assert (tmp_path / "x").read_text() == "ours"
    assert not (tmp_path / "x").is_symlink()


def test_a_fifo_in_the_place_of_a_file_goes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x")
    fd = open_to_write(tmp_path / "x")
    write_all(fd, b"ours")
    os.close(fd)
    assert (tmp_path / "x").read_text() == "ours"


def test_a_folder_in_the_place_of_a_file_stays(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError, match=r"directory"):
        open_to_write(tmp_path / "x")
    assert (tmp_path / "x").is_dir()


def test_all_is_written_however_little_is_taken_at_once() -> None:
    out, into = os.pipe()
    data = os.urandom(300_000)  # more than a pipe holds
    parts: list[bytes] = []

    def drain() -> None:
        while part := os.read(out, 1 << 16):
            parts.append(part)

    thread = threading.Thread(target=drain)
    thread.start()
    write_all(into, data)
    os.close(into)
    thread.join()
    os.close(out)
    assert b"".join(parts) == data


def test_an_endless_file_is_read_up_to_the_limit() -> None:
    fd = os.open("/dev/zero", os.O_RDONLY)
    assert read_at_most(fd, 3_000_000) == bytes(3_000_000)
    os.close(fd)
