"""A reader written from SPEC.md alone, with nothing of this package, agrees with the source."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

Array = npt.NDArray[Any]
TYPES = {"I8": "<i1", "U8": "<u1", "I32": "<i4", "F32": "<f4", "F16": "<f2"}


@dataclass(frozen=True)
class Tensor:
    """An array, and the file and the place it came from."""

    array: Array
    file: str
    begin: int
    end: int


def read_safetensors(path: Path) -> dict[str, Tensor]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        array = np.frombuffer(data[begin:end], TYPES[entry["dtype"]]).reshape(entry["shape"])
        tensors[name] = Tensor(array, path.name, begin, end)
    return tensors


def read_converted(folder: Path) -> tuple[list[Any], dict[str, Tensor]]:
    """The groups of the manifest, and every tensor that the index lists."""
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "int8conv"
    assert config["quantization_config"]["version"] == 1
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    shards = {shard: read_safetensors(folder / shard) for shard in set(weight_map.values())}
    inputs = json.loads((folder / "int8conv.json").read_text())["inputs"]
    return inputs, {name: shards[shard][name] for name, shard in weight_map.items()}


@pytest.fixture(params=["example", "small"])
def pair(request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """A source and what it was converted to: a trained model, and one with outliers at shared inputs and biases."""
    name = request.param
    source = "example" if name == "example" else "small_source"
    return request.getfixturevalue(source), request.getfixturevalue(f"{name}_int8")


def test_weights_come_back_within_half_a_scale(pair: tuple[Path, Path]) -> None:
    source = read_safetensors(pair[0] / "model.safetensors")
    groups, tensors = read_converted(pair[1])
    outliers = 0
    for path in (path for group in groups for path in group["linears"]):
        weight = source[f"{path}.weight"].array.astype(np.float64)
        codes = tensors[f"{path}.weight"].array
        assert codes.shape == (*weight.shape, 1)
        assert codes.min() >= -127
        codes = codes[..., 0].astype(np.float64)
        scale = tensors[f"{path}.weight_scale"].array.astype(np.float64)
        plain = np.ones(weight.shape[1], bool)
        if f"{path}.outlier_index" in tensors:
            columns = tensors[f"{path}.outlier_index"].array
            assert (np.diff(columns) > 0).all()
            plain[columns] = False
            assert not codes[:, columns].any()
            kept = tensors[f"{path}.outlier_weight"].array
            original = source[f"{path}.weight"].array[:, columns]
            np.testing.assert_array_equal(kept.view(np.uint16), original.view(np.uint16))
            outliers += len(columns)
        error = np.abs(codes * scale[:, None] - weight)[:, plain]
        # rint is of fp32(w / scale): half a scale, and a last bit of the quotient
        assert (error <= (0.5 + 128 * 2.0**-24) * scale[:, None]).all()
        largest = np.abs(weight[:, plain]).max(axis=1).astype(np.float32)
        expected = np.maximum(largest / np.float32(127), np.float32(2.0**-126))
        np.testing.assert_array_equal(scale, np.where(largest == 0, 0, expected))
    assert outliers > 0


def test_every_other_tensor_comes_back_bit_exact(pair: tuple[Path, Path]) -> None:
    source = read_safetensors(pair[0] / "model.safetensors")
    groups, tensors = read_converted(pair[1])
    weights = {f"{path}.weight" for group in groups for path in group["linears"]}
    companions = {f"{name}_scale" for name in weights}
    for name, tensor in tensors.items():
        if name in weights | companions or name.rpartition(".")[2].startswith("outlier_"):
            continue
        assert tensor.array.dtype == source[name].array.dtype
        assert tensor.array.tobytes() == source[name].array.tobytes()
    assert set(source) - weights <= set(tensors)


def test_each_kind_of_a_group_is_one_range_of_bytes(pair: tuple[Path, Path]) -> None:
    groups, tensors = read_converted(pair[1])
    shared = [group["linears"] for group in groups if len(group["linears"]) == 3]
    assert shared
    for linears in (group["linears"] for group in groups):
        for kind in ("weight", "weight_scale", "outlier_index", "outlier_weight", "bias"):
            run = [tensors[f"{p}.{kind}"] for p in linears if f"{p}.{kind}" in tensors]
            if not run:
                continue
            assert len(run) == len(linears)
            assert len({tensor.file for tensor in run}) == 1
            assert [t.end for t in run[:-1]] == [t.begin for t in run[1:]]
            path = pair[1] / run[0].file
            joined = path.read_bytes()[run[0].begin : run[-1].end]
            matrix = np.frombuffer(joined, run[0].array.dtype)
            expected = np.concatenate([tensor.array for tensor in run])
            np.testing.assert_array_equal(matrix.reshape(expected.shape), expected)
