"""The summary adds up: kinds and layers each give the total, and the total is the payload."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from int8conv.formats.int8.folder import open_converted
from int8conv.formats.int8.summary import inspect_folder, layer_of

from ..damage import pieces


@pytest.mark.parametrize("folder", ["example_int8", "small_int8"])
def test_kinds_and_layers_each_sum_to_the_payload(
    request: pytest.FixtureRequest, folder: str
) -> None:
    path: Path = request.getfixturevalue(folder)
    opened = open_converted(path)
    summary = inspect_folder(opened)
    shards = opened.checkpoint.headers
    payload = sum(len(piece[3]) for shard in shards for piece in pieces(path / shard))
    padding = next(row for row in summary.kinds if row.label == "padding")
    assert summary.total.nbytes == payload
    assert sum(row.nbytes for row in summary.kinds) == payload
    assert sum(row.nbytes for row in summary.layers) == payload - padding.nbytes
    for rows in (summary.kinds, summary.layers):
        assert sum(row.tensors for row in rows) == summary.total.tensors == len(summary.tensors)
        assert sum(row.nbytes_16bit for row in rows) == summary.total.nbytes_16bit


def test_against_the_source_in_16_bits(example: Path, example_int8: Path) -> None:
    source = sum(len(piece[3]) for piece in pieces(example / "model.safetensors"))
    summary = inspect_folder(open_converted(example_int8))
    assert summary.total.nbytes_16bit == source
    assert summary.ratio == summary.total.nbytes / source
    assert 0.5 < summary.ratio < 0.75


def test_layers_say_which_inputs_keep_columns(small_int8: Path) -> None:
    layers = inspect_folder(open_converted(small_int8)).layers
    assert [row.label for row in layers] == ["0", "1", "outside layers"]
    assert [row.linears for row in layers] == [6, 6, 0]
    assert layers[0].outliers == [(16, 64), (16, 64), (16, 64), (16, 160)]
    assert layers[-1].outliers == []


def test_kinds_have_their_dtypes(small_int8: Path) -> None:
    kinds = {row.label: row.dtypes for row in inspect_folder(open_converted(small_int8)).kinds}
    assert kinds == {
        "kept in 16 bits": "F16",
        "int8 weights": "I8",
        "row scales": "F32",
        "outlier indices": "I32",
        "outlier columns": "F16",
        "padding": "U8",
    }


def test_json_has_every_tensor_and_survives_a_round_trip(small_int8: Path) -> None:
    opened = open_converted(small_int8)
    value = inspect_folder(opened).to_json()
    again = json.loads(json.dumps(value))
    assert set(again["tensors"]) == set(opened.checkpoint.tensors)
    assert sum(entry["bytes"] for entry in again["tensors"].values()) == opened.checkpoint.nbytes
    assert again["total"]["bytes"] == inspect_folder(opened).total.nbytes
    assert again["layers"]["0"]["outliers"][0] == [16, 64]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.0.mlp.up_proj.weight", 0),
        ("model.layers.31.mlp.up_proj", 31),
        ("model.layers.7.experts.3.w1.weight", 7),
        ("model.norm.weight", None),
        ("layers.x.weight", None),
    ],
)
def test_the_layer_of_a_name(name: str, layer: int | None) -> None:
    assert layer_of(name) == layer
