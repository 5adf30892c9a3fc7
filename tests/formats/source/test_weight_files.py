"""Which files are taken for the weights."""

from __future__ import annotations

import pytest

from int8conv.errors import ArgumentError, MissingShardError
from int8conv.formats.source.weight_files import (
    PICKLES,
    SAFETENSORS,
    WeightFiles,
    find_weight_files,
    is_weights_name,
)

from ..damage import rejected

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def safetensors(*names: str) -> WeightFiles:
    return WeightFiles(SAFETENSORS, None, names)


def pickles(*names: str) -> WeightFiles:
    return WeightFiles(PICKLES, None, names)


FOUND = [
    (["model.safetensors"], safetensors("model.safetensors")),
    (["pytorch_model.bin"], pickles("pytorch_model.bin")),
    (["pytorch_model.bin", "model.safetensors"], safetensors("model.safetensors")),
    ([ONE, TWO, INDEX, "model.safetensors"], safetensors("model.safetensors")),
    ([ONE, TWO, INDEX, "consolidated.safetensors"], WeightFiles(SAFETENSORS, INDEX)),
    ([TWO, ONE], safetensors(ONE, TWO)),
    ([TWO, ONE, "consolidated.safetensors"], safetensors(ONE, TWO)),
    ([TWO, ONE, "adapter_model.safetensors"], safetensors(ONE, TWO)),
    ([TWO, ONE, f"._{ONE}", f"._{TWO}", "._model.safetensors"], safetensors(ONE, TWO)),
    (["._model.safetensors", "._model.safetensors.index.json"], None),
    (["adapter_model.safetensors", "adapter_model.bin"], None),
    (["x.fp16.safetensors"], safetensors("x.fp16.safetensors")),
    (["adapter.safetensors", "pytorch_model.bin"], pickles("pytorch_model.bin")),
    (["consolidated.00.pth", "params.json"], pickles("consolidated.00.pth")),
    (["weights.pt", "optimizer.pt", "rng_state_0.pth", "training_args.bin"], pickles("weights.pt")),
    (["a-1-of-2.bin", "a-2-of-2.bin"], pickles("a-1-of-2.bin", "a-2-of-2.bin")),
    (
        ["m.fp16.safetensors.index.json", "m.fp16-1-of-1.safetensors", "m-1-of-1.safetensors"],
        WeightFiles(SAFETENSORS, "m.fp16.safetensors.index.json"),
    ),
    (["optimizer.pt", "training_args.bin", "model.gguf", "notes.txt"], None),
    ([], None),
]


@pytest.mark.parametrize(("names", "expected"), FOUND, ids=lambda x: str(x)[:60])
def test_found_by_names(names: list[str], expected: WeightFiles | None) -> None:
    assert find_weight_files(names, "folder") == expected
    assert find_weight_files(names[::-1], "folder") == expected


def test_numbers_are_in_order_as_numbers() -> None:
    names = [f"x-{number}-of-11.safetensors" for number in range(1, 12)]
    assert find_weight_files(sorted(names), "folder") == safetensors(*names)


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        ([TWO], ONE),
        ([ONE], TWO),
        (["m-003-of-003.bin", "m-001-of-003.bin"], "m-002-of-003.bin"),
        (["m-1-of-999999999.bin"], "m-000000002-of-999999999.bin"),
    ],
)
def test_a_missing_number_is_named(names: list[str], missing: str) -> None:
    with rejected(MissingShardError, f"folder/{missing}", names[0]):
        find_weight_files(names, "folder")


@pytest.mark.parametrize(
    "names",
    [
        ["a.safetensors", "b.safetensors"],
        ["a-1-of-1.safetensors", "b-1-of-1.safetensors"],
        [ONE, "model-00001-of-00003.safetensors"],
        ["a.bin", "a.pth"],
    ],
)
def test_files_of_which_any_could_be_meant(names: list[str]) -> None:
    with rejected(ArgumentError, "folder", names[0], "pass one of the files"):
        find_weight_files(names, "folder")


def test_more_than_were_claimed() -> None:
    with rejected(ArgumentError, "more weights files"):
        find_weight_files(["m-1-of-1.bin", "m-2-of-1.bin"], "folder")


def test_one_that_was_named() -> None:
    names = ["model.safetensors", "other.safetensors", "old.pth", INDEX]
    assert find_weight_files(names, "folder", "other.safetensors") == safetensors(
        "other.safetensors"
    )
    assert find_weight_files(names, "folder", "old.pth") == pickles("old.pth")
    assert find_weight_files(names, "folder", INDEX) == WeightFiles(SAFETENSORS, INDEX)
    with rejected(ArgumentError, "folder/config.json", ".safetensors"):
        find_weight_files(names, "folder", "config.json")


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("x.safetensors", True),
        ("x.bin.index.json", True),
        ("x.pth", True),
        ("config.json", False),
        ("index.json", False),
        ("x.safetensors.json", False),
    ],
)
def test_names_of_weights(name: str, is_one: bool) -> None:
    assert is_weights_name(name) == is_one
