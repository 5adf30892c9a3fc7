"""Names that the format gives: of shards, of padding, and file names that stay in a folder."""

from __future__ import annotations

import pytest

from int8conv.formats.int8.names import KINDS, is_padding, is_plain_file_name, shard_name


@pytest.mark.parametrize(
    ("number", "count", "name"),
    [
        (1, 1, "model-00001-of-00001.safetensors"),
        (12, 345, "model-00012-of-00345.safetensors"),
        (99999, 100000, "model-99999-of-100000.safetensors"),
    ],
)
def test_shards_are_called_as_on_the_hub(number: int, count: int, name: str) -> None:
    assert shard_name(number, count) == name


@pytest.mark.parametrize(
    "name", ["model.safetensors", ".hidden", "...", "a b", "größe.json", "x" * 255, "é" * 127]
)
def test_plain_file_names(name: str) -> None:
    assert is_plain_file_name(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "/a", "../a", "a\\b", "a\0b", "x" * 256, "é" * 128, "a/"],
)
def test_names_that_leave_the_folder_or_are_none(name: str) -> None:
    """A limit in bytes: 128 letters of two bytes are too many."""
    assert not is_plain_file_name(name)


def test_a_name_with_half_of_a_surrogate_pair_is_measured_all_the_same() -> None:
    assert is_plain_file_name("\ud800" * 255)
    assert not is_plain_file_name("\ud800" * 256)


def test_padding_is_known_by_its_prefix() -> None:
    assert is_padding("int8conv.padding.0")
    assert not is_padding("model.int8conv.padding.0")
    assert not is_padding("int8conv.paddings")


def test_kinds_stand_in_the_order_of_a_group() -> None:
    assert KINDS == ("weight", "weight_scale", "outlier_index", "outlier_weight", "bias")
