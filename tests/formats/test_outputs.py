"""What an output may replace: by every name that a file can have, what is not ours stays as it was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from int8conv.errors import (
    Int8convError,
    NoSpaceError,
    NotWritableError,
    OutputError,
    OutputExistsError,
    OutputOverlapError,
)
from int8conv.formats.int8.manifest import FileRecord, Manifest
from int8conv.formats.json_file import dump_json
from int8conv.formats.outputs import (
    OutputKind,
    beside_name,
    check_apart,
    check_file,
    check_folder,
    write_output,
)

from .damage import MANIFEST, rejected

NOTE = OutputKind("a note", lambda path: path.read_text().startswith("note"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A source, as far as names tell."""
    folder = tmp_path / "box" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("weights")
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A converted folder, as far as its manifest tells."""
    folder = tmp_path / "output"
    folder.mkdir()
    records = {name: FileRecord(0, "0" * 32) for name in ("config.json", "shard")}
    manifest = Manifest("int8conv", {}, {}, None, (), files=records)
    (folder / MANIFEST).write_bytes(dump_json(manifest.to_json()))
    (folder / "config.json").write_text("{}")
    (folder / "shard").write_text("")
    return folder


def the_same(model: Path) -> Path:
    return model


def with_dots(model: Path) -> Path:
    return model / ".." / "model"


def relative(model: Path) -> Path:
    return Path(os.path.relpath(model))


def linked(model: Path) -> Path:
    model.with_name("link").symlink_to(model)
    return model.with_name("link")


def by_a_linked_parent(model: Path) -> Path:
    (link := model.parent.with_name("box2")).symlink_to("box")
    return link / "model"


def the_parent(model: Path) -> Path:
    return model.parent


def further_up(model: Path) -> Path:
    return model.parent.parent


def the_weights(model: Path) -> Path:
    return model / "model.safetensors"


def hard_linked_weights(model: Path) -> Path:
    (path := model.parent / "other").hardlink_to(model / "model.safetensors")
    return path


def below_the_weights(model: Path) -> Path:
    return model / "model.safetensors" / "out"


def where_the_weights_really_are(model: Path) -> Path:
    (blobs := model.parent / "blobs").mkdir()
    (model / "model.safetensors").rename(blobs / "abc")
    (model / "model.safetensors").symlink_to("../blobs/abc")
    return blobs


@pytest.mark.parametrize(
    "name",
    [
        the_same, with_dots, relative, linked, by_a_linked_parent, the_parent, further_up, the_weights,
        hard_linked_weights, below_the_weights, where_the_weights_really_are,
    ],
)  # fmt: skip
def test_an_output_is_apart_from_its_source(model: Path, name: Callable[[Path], Path]) -> None:
    with rejected(OutputOverlapError, "choose another output"):
        check_apart(name(model), model)


def test_an_output_in_another_case_where_case_does_not_count(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the file system of a Mac has it: another name, the same inode."""
    stat = Path.stat

    def fold(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        return stat(Path(str(path).replace("MODEL", "model")), follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", fold)
    with rejected(OutputOverlapError, "MODEL", "output is the source"):
        check_apart(model.with_name("MODEL"), model)


@pytest.mark.parametrize("place", ["box/out", "out", "box/model/out", "box/model-int8", "a/b"])
def test_anywhere_else_is_apart(model: Path, tmp_path: Path, place: str) -> None:
    check_apart(tmp_path / place, model)
    (tmp_path / place).mkdir(parents=True)
    check_apart(tmp_path / place, model)


def test_a_single_file_as_the_source(model: Path) -> None:
    weights = model / "model.safetensors"
    check_apart(model.with_name("out"), weights)
    for out in (weights, model, weights / "out"):
        with rejected(OutputOverlapError, str(out)):
            check_apart(out, weights)


def test_a_free_place(tmp_path: Path) -> None:
    check_folder(tmp_path / "out", force=False)
    check_folder(tmp_path / "no" / "such" / "parent", force=True)


def test_a_converted_folder_is_replaced_with_force_alone(output: Path) -> None:
    check_folder(output, force=True)
    (output / "config.json").unlink()  # a part of one is one
    check_folder(output, force=True)
    with rejected(OutputExistsError, str(output), "--force"):
        check_folder(output, force=False)


def a_foreign_file(output: Path) -> None:
    (output / "thesis.txt").write_text("the only copy")


def a_hidden_file(output: Path) -> None:
    (output / ".notes").write_text("the only copy")


def a_foreign_folder(output: Path) -> None:
    (output / "checkpoints").mkdir()


def a_folder_of_a_known_name(output: Path) -> None:
    (output / "shard").unlink()
    (output / "shard").mkdir()
    (output / "shard" / "thesis.txt").write_text("the only copy")


def a_link_to_a_foreign_file(output: Path) -> None:
    (output / "data").symlink_to("/etc/hostname")


@pytest.mark.parametrize(
    ("add", "word"),
    [
        (a_foreign_file, "thesis.txt"), (a_hidden_file, ".notes"), (a_foreign_folder, "checkpoints"),
        (a_folder_of_a_known_name, "shard"), (a_link_to_a_foreign_file, "data"),
    ],
)  # fmt: skip
def test_a_folder_that_holds_anything_else_is_not(
    output: Path, add: Callable[[Path], None], word: str
) -> None:
    add(output)
    with rejected(OutputExistsError, str(output), f"found {word}", "move them elsewhere"):
        check_folder(output, force=True)


@pytest.mark.parametrize(
    "text",
    ["", "old", "{}", "[]", '{"format": "int8conv"}', '{"format": "int8conv", "version": 9}'],
)
def test_a_folder_whose_manifest_does_not_open_is_not(output: Path, text: str) -> None:
    (output / MANIFEST).write_text(text)
    with rejected(OutputExistsError, str(output), "is not a converted folder"):
        check_folder(output, force=True)


def test_a_link_to_a_converted_folder_is_not(output: Path) -> None:
    output.with_name("link").symlink_to(output)
    with rejected(OutputExistsError, "is a symbolic link"):
        check_folder(output.with_name("link"), force=True)


@pytest.mark.parametrize("before", [None, "", "note 1"])
def test_a_file_of_its_kind_is_replaced(tmp_path: Path, before: str | None) -> None:
    if before is not None:
        (tmp_path / "x").write_text(before)
    write_output(tmp_path / "x", b"note 2", NOTE)
    assert (tmp_path / "x").read_text() == "note 2"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def foreign(path: Path) -> None:
    path.write_text("the only copy")


def a_link(path: Path) -> None:
    path.with_name("target").write_text("note of somebody else")
    path.symlink_to("target")


def a_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [foreign, a_link, a_dangling_link, a_fifo, a_folder])
def test_a_file_of_another_kind_is_not(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "x")
    before = sorted((p.name, p.is_symlink(), p.stat(follow_symlinks=False).st_ino) for p in tmp_path.iterdir())  # fmt: skip
    with rejected(OutputExistsError, str(tmp_path / "x"), "it is not replaced"):
        write_output(tmp_path / "x", b"note", NOTE)
    after = sorted((p.name, p.is_symlink(), p.stat(follow_symlinks=False).st_ino) for p in tmp_path.iterdir())  # fmt: skip
    assert before == after


def test_what_came_to_be_while_it_was_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def meanwhile(fd: int) -> None:
        fsync(fd)
        (tmp_path / "x").write_text("the only copy")

    monkeypatch.setattr(os, "fsync", meanwhile)
    with rejected(OutputExistsError, str(tmp_path / "x")):
        write_output(tmp_path / "x", b"note", NOTE)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"x": "the only copy"}


def test_a_source_is_not_replaced_by_its_own_kind(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("note a")
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    for name in ("a", "b"):
        with rejected(OutputOverlapError, name, "output is the source"):
            check_file(tmp_path / name, NOTE, [tmp_path / "a"])
    check_file(tmp_path / "c", NOTE, [tmp_path / "a"])


def test_nor_may_a_new_file_be_taken_for_weights(model: Path) -> None:
    check_file(
        model / "notes.safetensors", NOTE, [model]
    )  # beside model.safetensors it does not count
    (model / "model.safetensors").rename(model / "weights.safetensors")
    for name in ("model.safetensors", "notes.safetensors", "model.safetensors.index.json"):
        with rejected(OutputOverlapError, name, "would be taken for weights"):
            check_file(model / name, NOTE, [model])
    check_file(model / "notes.txt", NOTE, [model])
    check_file(model.with_name("model.safetensors"), NOTE, [model])


@pytest.mark.parametrize(
    ("number", "error"), [(28, NoSpaceError), (13, NotWritableError), (5, OutputError)]
)
@pytest.mark.parametrize("name", ["write", "fsync"])
def test_a_file_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    number: int,
    error: type[Int8convError],
) -> None:
    (tmp_path / "x").write_text("note 1")

    def fail(*args: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, name, fail)
    with rejected(error, str(tmp_path / "x")):
        write_output(tmp_path / "x", b"note 2", NOTE)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"x": "note 1"}


def test_a_folder_that_is_absent(tmp_path: Path) -> None:
    with rejected(NotWritableError, str(tmp_path / "no" / "x"), "No such file"):
        write_output(tmp_path / "no" / "x", b"note", NOTE)


@pytest.mark.parametrize("length", [1, 246, 247, 250, 255])
def test_names_as_long_as_the_system_takes(tmp_path: Path, length: int) -> None:
    out = tmp_path / ("ä" * (length // 2) + "x" * (length % 2))
    check_folder(out, force=False)
    hidden = beside_name(out, ".partial")
    hidden.mkdir()  # the system takes it
    assert hidden.name.startswith(".")
    assert (hidden.name == f".{out.name}.partial") == (length <= 246)
    assert hidden == beside_name(out, ".partial")
    write_output(out, b"note", NOTE)


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    out = tmp_path / ("x" * 256)
    for check in (lambda: check_folder(out, force=False), lambda: check_file(out, NOTE)):
        with rejected(OutputError, "File name too long"):
            check()


def test_two_long_names_have_their_own_workspaces(tmp_path: Path) -> None:
    a, b = (beside_name(tmp_path / ("x" * 249 + end), ".partial") for end in "ab")
    assert a != b


def test_the_source_survives_all_of_it(model: Path, tmp_path: Path) -> None:
    before = shutil.copytree(model, tmp_path / "before")
    for path in (model, model.parent, model / "model.safetensors"):
        with pytest.raises(Int8convError):
            check_file(path, NOTE, [model])
        with pytest.raises(Int8convError):
            check_folder(path, force=True)
    assert {p.name: p.read_text() for p in model.iterdir()} == {
        p.name: p.read_text() for p in Path(before).iterdir()
    }
