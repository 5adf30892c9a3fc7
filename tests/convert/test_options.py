"""What options are refused, and how a folder's manifest gives back those that it was made with."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import torch

from int8conv.convert.converter import convert_checkpoint
from int8conv.convert.options import ConvertOptions, read_options
from int8conv.convert.outliers.rule import Choosing
from int8conv.convert.outliers.selection import Patterns
from int8conv.errors import ArgumentError, JsonFileError
from int8conv.formats.int8.folder import open_converted
from int8conv.formats.int8.names import MANIFEST_FILE

from ..checkpoints import LLAMA, random_tensors, write_checkpoint
from ..formats.damage import rejected


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("outliers", "some", "calibrated or data-free or none"),
        ("dtype", "float32", "float16 or bfloat16"),
        ("dtype", "F16", "float16 or bfloat16"),
        ("max_shard_bytes", 0, "1 or more"),
        ("max_shard_bytes", -1, "1 or more"),
        ("outlier_rule", "largest", "absmax"),
        ("heavy_tails", "int8", "16bit"),
        ("rounding", "up", "nearest or compensated"),
        ("calibration_tokens", 0, "1 or more"),
        ("max_outliers", -0.001, "0 to 1"),
        ("max_outliers", 1.001, "0 to 1"),
        ("max_outliers", float("nan"), "0 to 1"),
        ("head", "int4", "16bit or int8 or int8-tied"),
        ("keep", ("fine", "("), "regular expression"),
        ("quantize", ("*",), "regular expression"),
        ("include", ("[a",), "regular expression"),
        ("exclude", ("a{2,1}",), "regular expression"),
    ],
)  # fmt: skip
def test_options_that_are_refused(name: str, value: Any, expected: str) -> None:
    with rejected(ArgumentError, name, expected):
        ConvertOptions(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("max_outliers", 0), ("max_outliers", 1), ("max_shard_bytes", 1)])  # fmt: skip
def test_limits_themselves_are_taken(name: str, value: Any) -> None:
    assert getattr(ConvertOptions(**{name: value}), name) == value


def test_what_the_options_stand_for() -> None:
    options = ConvertOptions(
        dtype="bfloat16", keep=("a",), quantize=("b",), max_outliers=0.5, heavy_tails="8bit"
    )
    assert options.half == "BF16"
    assert ConvertOptions().half == "F16"
    assert options.patterns == Patterns(("a",), ("b",))
    assert ConvertOptions(head="int8").patterns == Patterns(head="int8")
    assert "head" not in ConvertOptions().to_json()  # as in the manifests of earlier releases
    assert ConvertOptions(head="int8-tied").to_json() == asdict(ConvertOptions(head="int8-tied"))
    assert options.choosing == Choosing("error", 0.5, "8bit")


def test_a_folder_gives_back_the_options_it_was_made_with(tmp_path: Path) -> None:
    """All of them, each at a value that is not its default."""
    options = ConvertOptions(
        outliers="data-free", dtype="bfloat16", max_shard_bytes=50_000, keep=("q_proj",), quantize=("lm_head",),
        include=("model", "lm_head"), exclude=("extra",), outlier_rule="paper", max_outliers=0.5, heavy_tails="8bit",
        rounding="compensated", calibration_tokens=100, head="int8",
    )  # fmt: skip
    assert all(value != asdict(ConvertOptions())[name] for name, value in asdict(options).items())
    source = tmp_path / "source"
    write_checkpoint(source, tensors=random_tensors(LLAMA) | {"model.extra": torch.ones(3).half()})
    convert_checkpoint(source, tmp_path / "out", **asdict(options))
    assert read_options(open_converted(tmp_path / "out")) == options


@pytest.fixture
def manifest(converted: Path) -> Path:
    return converted / MANIFEST_FILE


def change(manifest: Path, **options: Any) -> None:
    content = json.loads(manifest.read_text())
    content["options"] |= options
    manifest.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("outliers", 5), ("outliers", None), ("dtype", ["float16"]), ("max_shard_bytes", 5.0),
        ("max_shard_bytes", True), ("keep", "q_proj"), ("keep", [1]), ("max_outliers", "1"),
        ("max_outliers", True), ("heavy_tails", None), ("rounding", 1), ("calibration_tokens", 1.0), ("new_in_a_later_release", 1),
    ],
)  # fmt: skip
def test_options_of_another_kind_or_of_a_later_release(
    manifest: Path, name: str, value: Any
) -> None:
    change(manifest, **{name: value})
    with rejected(JsonFileError, str(manifest), f"'{name}'", "release"):
        read_options(open_converted(manifest.parent))


@pytest.mark.parametrize(("name", "value"), [("outliers", "some"), ("max_outliers", 2), ("keep", ["("])])  # fmt: skip
def test_options_that_convert_would_refuse(manifest: Path, name: str, value: Any) -> None:
    change(manifest, **{name: value})
    with rejected(JsonFileError, str(manifest), name, "expected"):
        read_options(open_converted(manifest.parent))


def test_an_older_manifest_without_an_option_has_its_default(manifest: Path) -> None:
    content = json.loads(manifest.read_text())
    content["options"] = {"outliers": "none"}
    manifest.write_text(json.dumps(content))
    found = read_options(open_converted(manifest.parent))
    assert found == ConvertOptions(outliers="none")
    assert {f.name for f in fields(found)} == set(asdict(found))
