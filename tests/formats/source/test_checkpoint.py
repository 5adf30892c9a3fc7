"""Source folders: what opens, and how an index, a config or a shard that does not fit is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from int8conv.errors import (
    HeaderSyntaxError,
    JsonFileError,
    MissingShardError,
    MissingTensorError,
    NotFoundError,
    UnsafePathError,
)
from int8conv.formats.safetensors.stored import read_array
from int8conv.formats.source.checkpoint import open_checkpoint

from ...checkpoints import write_checkpoint
from ..damage import INDEX, edit_json, rejected, write_raw

NAME = "model.norm.weight"

UNSAFE_NAMES = [
    "", ".", "..", "../x.safetensors", "/x.safetensors", "sub/x.safetensors", "x/..",
    "..\\x.safetensors", "x\0.safetensors", "x" * 300,
]  # fmt: skip


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A source in three shards with an index."""
    return write_checkpoint(tmp_path / "sharded", shards=3)


def test_one_file_and_several_hold_the_same_tensors(source: Path, sharded: Path) -> None:
    one, several = open_checkpoint(source), open_checkpoint(sharded)
    assert one.weight_map is None
    assert several.weight_map is not None
    assert len(several.headers) == 3
    assert one.nbytes == several.nbytes
    assert {n: (t.dtype, t.shape) for n, t in one.tensors.items()} == {
        n: (t.dtype, t.shape) for n, t in several.tensors.items()
    }
    for name, tensor in several.tensors.items():
        assert tensor.file.name == several.weight_map[name]
        assert read_array(tensor).tobytes() == read_array(one.tensor(name)).tobytes()


def test_a_tensor_that_is_asked_for_and_absent_is_named(source: Path) -> None:
    with rejected(MissingTensorError, str(source), "'model.nothing'"):
        open_checkpoint(source).tensor("model.nothing")


def test_no_such_folder(tmp_path: Path) -> None:
    with rejected(NotFoundError, str(tmp_path / "no"), "no such folder"):
        open_checkpoint(tmp_path / "no")


def test_a_file_in_place_of_a_folder(source: Path) -> None:
    with rejected(NotFoundError, "config.json", "not a folder"):
        open_checkpoint(source / "config.json")


@pytest.mark.parametrize("other", ["model.gguf", "optimizer.pt", "weights.txt"])
def test_a_folder_without_safetensors_says_what_it_has(source: Path, other: str) -> None:
    (source / "model.safetensors").rename(source / other)
    found = "no weights" if other.endswith("txt") else other
    with rejected(NotFoundError, str(source), found):
        open_checkpoint(source)


def test_a_file_that_the_index_does_not_name_does_not_matter(sharded: Path) -> None:
    before = open_checkpoint(sharded)
    write_raw(sharded / "stray.safetensors", b"not even a header", b"")
    assert open_checkpoint(sharded).tensors == before.tensors


def test_a_tensor_that_the_index_does_not_list_does_not_matter_in_a_source(sharded: Path) -> None:
    edit_json(sharded / INDEX, lambda index: index["weight_map"].pop(NAME))
    assert NAME not in open_checkpoint(sharded).tensors


@pytest.mark.rule("F5")
def test_a_shard_that_is_absent_is_named(sharded: Path) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with rejected(MissingShardError, str(sharded / "model-00002-of-00003.safetensors")):
        open_checkpoint(sharded)


@pytest.mark.rule("F6")
def test_a_listed_tensor_that_its_shard_lacks_is_named(sharded: Path) -> None:
    shards = {f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)}

    def to_another_shard(index: dict[str, dict[str, str]]) -> None:
        index["weight_map"][NAME] = min(shards - {index["weight_map"][NAME]})

    edit_json(sharded / INDEX, to_another_shard)
    with rejected(MissingTensorError, str(sharded), f"'{NAME}'"):
        open_checkpoint(sharded)


@pytest.mark.rule("F4")
@pytest.mark.parametrize("name", UNSAFE_NAMES)
def test_a_weight_map_stays_within_the_folder(sharded: Path, name: str) -> None:
    write_checkpoint(sharded.parent)  # a file outside that could be read
    edit_json(sharded / INDEX, lambda index: index["weight_map"].update({NAME: name}))
    with rejected(UnsafePathError, str(sharded / INDEX), f"'{NAME}'"):
        open_checkpoint(sharded)


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
def test_an_index_that_is_not_the_json_it_should_be(sharded: Path, text: str) -> None:
    (sharded / INDEX).write_text(text)
    with rejected(JsonFileError, str(sharded / INDEX)):
        open_checkpoint(sharded)


@pytest.mark.rule("F3")
@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff\xfe{}", b"\xef\xbb\xbf{}"])
def test_a_config_that_is_not_a_json_object(source: Path, data: bytes) -> None:
    (source / "config.json").write_bytes(data)
    with rejected(JsonFileError, str(source / "config.json")):
        open_checkpoint(source)


def test_a_config_that_is_absent(source: Path) -> None:
    (source / "config.json").unlink()
    with rejected(NotFoundError, str(source / "config.json")):
        open_checkpoint(source)


def test_a_source_config_may_be_as_lax_as_the_hub_is(source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config)[:-1] + ', "limit": Infinity}')
    assert open_checkpoint(source).config["limit"] == float("inf")


def test_the_shards_of_an_index_are_checked(sharded: Path) -> None:
    write_raw(sharded / "model-00002-of-00003.safetensors", b"{", b"")
    with rejected(HeaderSyntaxError, "model-00002-of-00003.safetensors"):
        open_checkpoint(sharded)
