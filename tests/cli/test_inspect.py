"""``int8conv inspect``: sums that agree with the files, and the flipped byte that ``--verify`` finds."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from int8conv.convert.converter import convert_checkpoint

from ..checkpoints import OPT, write_checkpoint
from .helpers import check_refused, flip_byte, read_raw_header, run, succeed

SEEDS = range(12)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A small converted OPT in several shards, with some small files beside them; to be changed at will."""
    source = write_checkpoint(tmp_path / "source", OPT)
    (source / "tokenizer_config.json").write_text('{"add_bos_token": true}')
    (source / "LICENSE").write_text("Do what you like.\n")
    convert_checkpoint(source, tmp_path / "small", outliers="none", max_shard_bytes=80_000)
    return tmp_path / "small"


def report(folder: Path, *flags: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(succeed("inspect", folder, "--json", *flags).stdout)
    return value


@pytest.fixture(params=["example_int8", "small"])
def folder(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


def test_sums_agree_with_the_files(folder: Path) -> None:
    value = report(folder)
    shards = sorted(folder.glob("*.safetensors"))
    payload = sum(path.stat().st_size - read_raw_header(path)[1] for path in shards)
    assert value["total"]["bytes"] == payload
    for figure in ("tensors", "bytes", "bytes_16bit"):
        kinds = {label: row[figure] for label, row in value["kinds"].items()}
        padding = kinds["padding"]
        assert sum(kinds.values()) == value["total"][figure]
        assert (
            sum(row[figure] for row in value["layers"].values()) + padding == value["total"][figure]
        )
    assert value["ratio"] == value["total"]["bytes"] / value["total"]["bytes_16bit"]
    assert value["total"]["tensors"] == len(value["tensors"])
    assert sum(tensor["bytes"] for tensor in value["tensors"].values()) == payload - padding_of(
        value
    )


def padding_of(value: dict[str, Any]) -> int:
    return int(value["kinds"]["padding"]["bytes"])


def test_every_tensor_is_listed_as_the_shards_have_it(folder: Path) -> None:
    listed = report(folder)["tensors"]
    found = {}
    for path in folder.glob("*.safetensors"):
        for name, entry in read_raw_header(path)[0].items():
            if name != "__metadata__" and not name.startswith("int8conv.padding."):
                begin, end = entry["data_offsets"]
                found[name] = {
                    "dtype": entry["dtype"], "shape": entry["shape"], "bytes": end - begin, "file": path.name,
                }  # fmt: skip
    assert listed == found


def test_sixteen_bit_bytes_are_those_of_the_source(example: Path, example_int8: Path) -> None:
    _, start = read_raw_header(example / "model.safetensors")
    expected = (example / "model.safetensors").stat().st_size - start
    assert report(example_int8)["total"]["bytes_16bit"] == expected


def test_tables(example_int8: Path) -> None:
    shown = succeed("inspect", example_int8).stdout
    assert shown.startswith(
        f"{example_int8}: int8conv format 1, llama, from small-llama, by int8conv "
    )
    for word in (
        "int8 weights",
        "row scales",
        "outlier columns",
        "padding",
        "total",
        "outside layers",
    ):
        assert word in shown
    assert "model.embed_tokens.weight" not in shown
    assert shown.splitlines()[-1].endswith("x of 16 bits")


def test_the_list_of_tensors(example_int8: Path) -> None:
    shown = succeed("inspect", example_int8, "--tensors").stdout
    for name in report(example_int8)["tensors"]:
        assert f"\n{name} " in shown


def test_verify_tells_how_much_was_read(folder: Path) -> None:
    total = sum(p.stat().st_size for p in folder.iterdir() if p.name != "int8conv.json")
    assert report(folder, "--verify")["verified_bytes"] == total
    result = succeed("inspect", folder, "--verify")
    assert result.stdout.splitlines()[-1] == f"verified: {total:,} bytes match their checksums"
    assert result.stderr == ""


def test_without_verify_payload_is_not_read(converted: Path) -> None:
    """Sums need headers only."""
    shard = next(converted.glob("*.safetensors"))
    flip_byte(shard, shard.stat().st_size - 1)
    succeed("inspect", converted)


def tensor_at(path: Path, position: int) -> str:
    """The tensor that a byte of a shard belongs to."""
    header, start = read_raw_header(path)
    del header["__metadata__"]
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        if start + begin <= position < start + end:
            return name
    raise AssertionError(position)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_flipped_byte_of_a_tensor(small: Path, seed: int) -> None:
    generator = random.Random(seed)
    shard = generator.choice(sorted(small.glob("*.safetensors")))
    position = generator.randrange(read_raw_header(shard)[1], shard.stat().st_size)
    tensor = tensor_at(shard, position)
    flip_byte(shard, position)
    check_refused(run("inspect", small, "--verify"), shard, f"tensor '{tensor}'")
    check_refused(run("inspect", small, "--verify", "--json"), shard, f"tensor '{tensor}'")


@pytest.mark.parametrize("seed", range(4))
def test_a_flipped_byte_of_the_example(converted: Path, seed: int) -> None:
    (shard,) = converted.glob("*.safetensors")
    position = random.Random(seed).randrange(read_raw_header(shard)[1], shard.stat().st_size)
    tensor = tensor_at(shard, position)
    flip_byte(shard, position)
    check_refused(run("inspect", converted, "--verify"), shard, f"tensor '{tensor}'")


@pytest.mark.parametrize("kind", ["weight", "weight_scale", "bias", "padding"])
def test_a_flipped_byte_of_each_kind(small: Path, kind: str) -> None:
    for shard in sorted(small.glob("*.safetensors")):
        header, start = read_raw_header(shard)
        names = [n for n in header if f".{kind}" in n and not n.endswith(f"{kind}_scale")]
        for name in names[:1]:
            flip_byte(shard, start + header[name]["data_offsets"][1] - 1)
            check_refused(run("inspect", small, "--verify"), shard, f"tensor '{name}'")
            return
    raise AssertionError(kind)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_flipped_byte_of_a_header(small: Path, seed: int) -> None:
    generator = random.Random(seed)
    shard = generator.choice(sorted(small.glob("*.safetensors")))
    flip_byte(shard, generator.randrange(read_raw_header(shard)[1]))
    check_refused(run("inspect", small, "--verify"), str(small))


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors.index.json", "tokenizer_config.json", "LICENSE"]
)
@pytest.mark.parametrize("seed", range(5))
def test_a_flipped_byte_of_a_small_file(small: Path, name: str, seed: int) -> None:
    path = small / name
    position = random.Random(seed).randrange(path.stat().st_size)
    flip_byte(path, position)
    words = [name] if name != "model.safetensors.index.json" else []  # may name the shard it misses
    check_refused(run("inspect", small, "--verify"), str(small), *words)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "size differs"),
        (lambda path: path.write_bytes(b""), "size differs"),
    ],
    ids=["removed", "longer", "empty"],
)
def test_a_small_file_that_is_not_what_it_was(
    small: Path, damage: Callable[[Path], object], words: str
) -> None:
    damage(small / "LICENSE")
    check_refused(run("inspect", small, "--verify"), small / "LICENSE", words)


def test_files_of_others_are_left_alone(small: Path) -> None:
    (small / "notes.txt").write_text("mine")
    succeed("inspect", small, "--verify")
