"""An index of weights files: what it may say, and what is done where it and the files disagree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from int8conv.errors import (
    DuplicateTensorError,
    JsonFileError,
    MissingTensorError,
    NotFoundError,
    UnsafePathError,
)
from int8conv.formats.safetensors.header import Header, TensorInfo
from int8conv.formats.source.index import check_listed, read_weight_map, shard_of_each

from ..damage import INDEX, rejected

FOLDER = Path("somewhere")
UNSAFE_NAMES = [
    "", ".", "..", "../x.safetensors", "/x.safetensors", "sub/x.safetensors", "x/..",
    "..\\x.safetensors", "x\0.safetensors", "x" * 300,
]  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / INDEX


def test_a_weight_map(file: Path) -> None:
    weight_map = {"b": "2.safetensors", "a": "1.safetensors", "c": "2.safetensors"}
    file.write_text(json.dumps({"metadata": {"total_size": 5}, "weight_map": weight_map}))
    found = read_weight_map(file)
    assert list(found.items()) == list(weight_map.items())


@pytest.mark.rule("F3")
@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", '"x"', "{}", '{"weight_map": null}', '{"weight_map": {}}',
        '{"weight_map": ["a"]}',
        '{"weight_map": "a"}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": null}}',
        '{"weight_map": {"a": ["model.safetensors"]}}',
        '{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}',
        '{"metadata": {"total_size": NaN}, "weight_map": {"a": "x.safetensors"}}',
        '{"weight_map": {"\\ud800": "x.safetensors"}}',
        "[" * 100_000, "9" * 5000,
    ],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_an_index_that_is_not_the_json_it_should_be(file: Path, text: str) -> None:
    file.write_text(text)
    with rejected(JsonFileError, str(file)):
        read_weight_map(file)


def test_what_is_wrong_with_it_is_said(file: Path) -> None:
    file.write_text('{"weight_map": ["a"]}')
    with rejected(JsonFileError, "tensor name -> file name", "found list"):
        read_weight_map(file)
    file.write_text('{"weight_map": {"a": "x", "b": 7}}')
    with rejected(JsonFileError, "'b'", "not a file name", "found 7"):
        read_weight_map(file)
    with rejected(NotFoundError, str(file.with_name("absent"))):
        read_weight_map(file.with_name("absent"))


@pytest.mark.rule("F4")
@pytest.mark.parametrize("name", UNSAFE_NAMES, ids=lambda name: repr(name)[:20])
def test_a_weight_map_stays_within_the_folder(file: Path, name: str) -> None:
    file.write_text(json.dumps({"weight_map": {"good": "model.safetensors", "bad": name}}))
    with rejected(UnsafePathError, str(file), "'bad'", "outside the folder", repr(name)):
        read_weight_map(file)


def headers(**shards: str) -> dict[str, Header]:
    """Files that have tensors, each called by a letter."""
    return {
        shard: Header({name: TensorInfo(name, "U8", (0,), 0, 0) for name in names})
        for shard, names in shards.items()
    }


def test_what_the_index_lists_has_to_be_in_its_shard() -> None:
    check_listed(headers(one="ab", two="c"), {"a": "one", "c": "two"}, INDEX, FOLDER)
    with rejected(MissingTensorError, f"listed in {INDEX}", str(FOLDER / "two"), "'b'"):
        check_listed(headers(one="ab", two="c"), {"a": "one", "b": "two"}, INDEX, FOLDER)


def test_without_an_index_each_tensor_is_in_one_file() -> None:
    assert shard_of_each(headers(one="ab", two="c"), None, FOLDER) == (
        {"a": "one", "b": "one", "c": "two"},
        (),
    )
    with rejected(DuplicateTensorError, str(FOLDER / "two"), "'b'", "is also in one", "merge"):
        shard_of_each(headers(one="ab", two="bc"), None, FOLDER)


def test_an_index_that_agrees_leaves_nothing_to_say() -> None:
    """Nor is there anything to choose: every file gives all that it has."""
    assert shard_of_each(headers(one="a", two="b"), {"a": "one", "b": "two"}, FOLDER) == (None, ())
    assert shard_of_each(headers(one="ab"), None, FOLDER) == (None, ())
    swapped = {"a": "two", "b": "one"}
    taken, _ = shard_of_each(headers(one="a", two="b"), swapped, FOLDER)
    assert taken == {"a": "one", "b": "two"}


def test_headers_count_and_what_differs_is_said_in_this_order() -> None:
    """Of three files with one tensor the last is taken; each pair of them is named."""
    weight_map = {"a": "two", "gone": "one", "b": "one"}
    taken, notes = shard_of_each(headers(one="ab", two="ac", three="a"), weight_map, FOLDER)
    assert taken == {"a": "three", "b": "one", "c": "two"}
    assert notes == (
        "tensors in two files (the last one is used): a (in one and two), a (in two and three)",
        "tensors listed in the index but in no file (1): gone",
        "tensors used although the index does not list them (1): c",
    )


def test_padding_of_converted_folders_is_in_no_index() -> None:
    names = ("a", "int8conv.padding.0")
    header = Header({name: TensorInfo(name, "U8", (0,), 0, 0) for name in names})
    assert shard_of_each({"one": header}, {"a": "one"}, FOLDER)[1] == ()


def test_of_many_names_the_first_are_shown() -> None:
    _, notes = shard_of_each(headers(one="abcdef"), dict.fromkeys("aXYZW", "one"), FOLDER)
    assert notes == (
        "tensors listed in the index but in no file (4): X, Y, Z, ...",
        "tensors used although the index does not list them (5): b, c, d, ...",
    )
