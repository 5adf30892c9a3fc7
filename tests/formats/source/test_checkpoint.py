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
    PointerFileError,
)
from int8conv.formats.safetensors.stored import read_array
from int8conv.formats.source.checkpoint import Checkpoint, open_checkpoint

from ...checkpoints import write_checkpoint
from ..damage import (
    INDEX,
    edit_json,
    read_shard,
    rejected,
    write_pointer,
    write_raw,
    write_shard,
)

NAME = "model.norm.weight"


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


def test_a_file_that_the_index_does_not_name_is_left_out_with_a_note(sharded: Path) -> None:
    before = open_checkpoint(sharded)
    assert before.notes == ()
    write_raw(sharded / "stray.safetensors", b"not even a header", b"")
    after = open_checkpoint(sharded)
    assert after.tensors == before.tensors
    assert after.notes == (f"using the weights in {INDEX}; left out: stray.safetensors",)


def values(checkpoint: Checkpoint) -> dict[str, bytes]:
    return {name: read_array(tensor).tobytes() for name, tensor in checkpoint.tensors.items()}


def test_one_file_goes_before_an_index(sharded: Path) -> None:
    """As in transformers: a save into the folder of an earlier, larger one leaves its shards."""
    write_checkpoint(sharded, seed=7)
    opened = open_checkpoint(sharded)
    assert {tensor.file.name for tensor in opened.tensors.values()} == {"model.safetensors"}
    assert values(opened) == values(open_checkpoint(write_checkpoint(sharded.parent / "x", seed=7)))
    (note,) = opened.notes
    assert "model.safetensors; left out" in note
    assert "model-00001-of-00003.safetensors" in note
    for shard in sharded.glob("model-*.safetensors"):
        shard.unlink()
    opened = open_checkpoint(sharded)
    assert opened.notes == (f"using the weights in model.safetensors; left out: {INDEX}",)


def test_an_index_of_the_one_file_is_no_other(source: Path) -> None:
    weight_map = dict.fromkeys(open_checkpoint(source).tensors, "model.safetensors")
    (source / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert open_checkpoint(source).notes == ()


def test_a_tensor_that_the_index_does_not_list_is_found(sharded: Path) -> None:
    before = open_checkpoint(sharded)
    edit_json(sharded / INDEX, lambda index: index["weight_map"].pop(NAME))
    after = open_checkpoint(sharded)
    assert values(after) == values(before)
    assert after.notes == (f"tensors used although the index does not list them (1): {NAME}",)
    assert NAME not in open_checkpoint(sharded, exact=True).tensors


def test_a_tensor_that_the_index_lists_for_the_wrong_file_is_found(sharded: Path) -> None:
    before = open_checkpoint(sharded)

    def swap(index: dict[str, dict[str, str]]) -> None:
        weight_map, (first, *_, last) = index["weight_map"], index["weight_map"]
        weight_map[first], weight_map[last] = weight_map[last], weight_map[first]
        assert weight_map[first] != weight_map[last]

    edit_json(sharded / INDEX, swap)
    after = open_checkpoint(sharded)
    assert after.tensors == before.tensors
    assert after.notes == ()


def test_a_tensor_that_the_index_lists_and_no_file_has_is_noted(sharded: Path) -> None:
    before = open_checkpoint(sharded)
    shard = "model-00001-of-00003.safetensors"
    edit_json(sharded / INDEX, lambda index: index["weight_map"].update({"gone": shard}))
    after = open_checkpoint(sharded)
    assert after.tensors == before.tensors
    assert after.notes == ("tensors listed in the index but in no file (1): gone",)


def test_of_a_tensor_in_two_files_the_last_is_taken(sharded: Path) -> None:
    first, last = "model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"
    header, payload = read_shard(sharded / first)
    header[NAME] = {"dtype": "U8", "shape": [1], "data_offsets": [len(payload), len(payload) + 1]}
    write_shard(sharded / first, header, payload + b"x")
    header, payload = read_shard(sharded / last)
    header[NAME] = {"dtype": "U8", "shape": [1], "data_offsets": [len(payload), len(payload) + 1]}
    write_shard(sharded / last, header, payload + b"y")
    opened = open_checkpoint(sharded)
    assert read_array(opened.tensors[NAME]).tobytes() == b"y"
    assert f"{NAME} (in" in opened.notes[0]
    assert "the last one is used" in opened.notes[0]


def test_weights_of_another_name_beside_numbered_ones_are_left_out(sharded: Path) -> None:
    """As Mistral's repositories have them, downloaded by hand without the index."""
    before = open_checkpoint(sharded)
    (sharded / INDEX).unlink()
    write_raw(sharded / "consolidated.safetensors", b"not even a header", b"")
    for shard in list(sharded.glob("*.safetensors")):
        (sharded / f"._{shard.name}").write_bytes(b"\0\5\x16\7")
    after = open_checkpoint(sharded)
    assert after.tensors == before.tensors
    assert after.notes[0].endswith("; left out: consolidated.safetensors")


def test_a_link_to_nowhere_is_named(sharded: Path) -> None:
    shard = sharded / "model-00002-of-00003.safetensors"
    shard.unlink()
    shard.symlink_to("../blobs/gone")
    with rejected(NotFoundError, str(shard), "does not exist", "../blobs/gone", "download"):
        open_checkpoint(sharded)
    (sharded / INDEX).unlink()
    (sharded / INDEX).symlink_to("../blobs/index")
    with rejected(NotFoundError, INDEX, "../blobs/index"):
        open_checkpoint(sharded)


def test_a_lone_link_to_nowhere_is_named(source: Path) -> None:
    (source / "model.safetensors").unlink()
    (source / "model.safetensors").symlink_to("gone")
    with rejected(NotFoundError, str(source / "model.safetensors"), "does not exist", "gone"):
        open_checkpoint(source)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_git_lfs_pointer_in_place_of_the_weights(source: Path, name: str) -> None:
    (source / "model.safetensors").unlink()
    write_pointer(source / name)
    with rejected(PointerFileError, str(source / name), "git lfs pull"):
        open_checkpoint(source)


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
        open_checkpoint(sharded, exact=True)


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
