"""``examples/reader.py``, written from SPEC.md alone, agrees with the source, and with this package on every linear."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.numpy import load_file

from int8conv.convert.converter import convert_checkpoint
from int8conv.kernels import reference
from int8conv.kernels.weight import MixedWeight

from ...checkpoints import LLAMA, random_tensors, write_checkpoint
from ..damage import (
    MANIFEST,
    drop_tensor,
    edit_header,
    edit_json,
    pieces,
    rename_tensor,
    restate_tensor,
    tensor_bytes,
    write_tensor,
)

READER = Path(__file__).parents[3] / "examples" / "reader.py"
LINEAR = "model.decoder.layers.0.fc2"
"""Has 16 outlier columns of 160, and a bias."""
Q, K = (f"model.decoder.layers.0.self_attn.{role}_proj" for role in "qk")
FIRST = "model-00001-of-00003.safetensors"


@pytest.fixture(scope="module")
def reader() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reader", READER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["reader"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["example", "small"])
def pair(request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """A source and what it was converted to: a trained model, and one with outliers at shared inputs and biases."""
    name = request.param
    source = "example" if name == "example" else "small_source"
    return request.getfixturevalue(source), request.getfixturevalue(f"{name}_int8")


def test_it_needs_nothing_but_numpy_and_safetensors(small_int8: Path) -> None:
    program = f"""
import runpy, sys
sys.argv = [{str(READER)!r}, {str(small_int8)!r}]
runpy.run_path(sys.argv[0], run_name="__main__")
assert not {{"torch", "int8conv", "transformers"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    first, *groups = done.stdout.splitlines()
    assert first == "opt: 12 linears, 12 other tensors"
    assert len(groups) == 8
    assert "16/64 columns in 16 bits" in groups[0]


def test_it_shows_one_linear(small_int8: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(READER), str(small_int8), LINEAR], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{LINEAR} [64, 160], outlier columns [")


def test_weights_come_back_within_half_a_scale(pair: tuple[Path, Path], reader: ModuleType) -> None:
    source = load_file(pair[0] / "model.safetensors")
    model = reader.read_model(pair[1])
    outliers = 0
    for path, linear in model.linears.items():
        original = source[f"{path}.weight"]
        weight = original.astype(np.float64)
        assert linear.codes.shape == weight.shape
        assert linear.codes.min() >= -127
        plain = np.ones(weight.shape[1], bool)
        plain[linear.columns] = False
        assert not linear.codes[:, linear.columns].any()
        np.testing.assert_array_equal(linear.kept, original[:, linear.columns].astype(np.float32))
        outliers += len(linear.columns)
        scale = linear.scale.astype(np.float64)
        error = np.abs(linear.codes * scale[:, None] - weight)[:, plain]
        # rint is of fp32(w / scale): half a scale, and a last bit of the quotient
        assert (error <= (0.5 + 128 * 2.0**-24) * scale[:, None]).all()
        largest = np.abs(weight[:, plain]).max(axis=1).astype(np.float32)
        expected = np.maximum(largest / np.float32(127), np.float32(2.0**-126))
        np.testing.assert_array_equal(linear.scale, np.where(largest == 0, 0, expected))
        dequantized = linear.weight()
        np.testing.assert_array_equal(dequantized[:, linear.columns], linear.kept)
        np.testing.assert_allclose(dequantized, weight, atol=float(scale.max()) * 0.51)
    assert outliers > 0


def test_every_other_tensor_comes_back_bit_exact(
    pair: tuple[Path, Path], reader: ModuleType
) -> None:
    source = load_file(pair[0] / "model.safetensors")
    model = reader.read_model(pair[1])
    taken = {f"{path}.{kind}" for path in model.linears for kind in ("weight", "bias")}
    assert set(model.others) == set(source) - taken
    for name, array in model.others.items():
        assert array.dtype == source[name].dtype
        assert array.tobytes() == source[name].tobytes()
    for path, linear in model.linears.items():
        bias = source.get(f"{path}.bias")
        assert (linear.bias is None) == (bias is None)
        if bias is not None:
            np.testing.assert_array_equal(linear.bias, bias.astype(np.float32))


@pytest.mark.parametrize("mode", ["w8a8", "w8a16"])
def test_it_multiplies_as_the_package_does(
    pair: tuple[Path, Path], reader: ModuleType, mode: Any
) -> None:
    """Thresholds of all three kinds among them: none, 0, and one that a value passes."""
    model = reader.read_model(pair[1])
    random = np.random.default_rng(0)
    thresholds = set()
    for linear in list(model.linears.values())[:7]:
        x = random.standard_normal((9, linear.codes.shape[1]), dtype=np.float32)
        x[2, 5], x[3] = 50, 0
        kept = torch.tensor(linear.kept).half() if len(linear.columns) else None
        columns = torch.tensor(linear.columns) if len(linear.columns) else None
        weight = MixedWeight(
            torch.tensor(linear.codes), torch.tensor(linear.scale), columns, kept, linear.threshold
        )
        bias = None if linear.bias is None else torch.tensor(linear.bias)
        expected = getattr(reference, mode)(torch.tensor(x), weight)
        expected = expected if bias is None else expected + bias
        found = linear.w8a8(x) if mode == "w8a8" else linear(x)
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-4)
        thresholds.add(linear.threshold)
    assert len(thresholds) > 1


def test_it_reads_bfloat16(tmp_path: Path, reader: ModuleType) -> None:
    tensors = random_tensors(LLAMA, torch.bfloat16)
    source = write_checkpoint(tmp_path / "source", LLAMA, tensors)
    convert_checkpoint(source, tmp_path / "out", outliers="none")
    model = reader.read_model(tmp_path / "out")
    name = "model.embed_tokens.weight"
    np.testing.assert_array_equal(model.others[name], tensors[name].float().numpy())


def test_each_kind_of_a_group_is_one_range_of_bytes(
    pair: tuple[Path, Path], reader: ModuleType
) -> None:
    model = reader.read_model(pair[1])
    weight_map = json.loads((pair[1] / "model.safetensors.index.json").read_text())["weight_map"]
    shards = {shard: pieces(pair[1] / shard) for shard in set(weight_map.values())}
    assert [group for group in model.groups if len(group) == 3]
    for group in model.groups:
        shard = shards[weight_map[f"{group[0]}.weight"]]
        names = [name for name, *_ in shard]
        for kind in ("weight", "weight_scale", "outlier_index", "outlier_weight", "bias"):
            if f"{group[0]}.{kind}" in names:
                at = names.index(f"{group[0]}.{kind}")
                assert names[at : at + len(group)] == [f"{path}.{kind}" for path in group]
                codes = np.concatenate([model.linears[path].codes for path in group])
                if kind == "weight":
                    joined = b"".join(data for _, _, _, data in shard[at : at + len(group)])
                    fused: npt.NDArray[Any] = np.frombuffer(joined, np.int8)
                    np.testing.assert_array_equal(fused.reshape(codes.shape), codes)


def set_version(folder: Path) -> None:
    edit_json(folder / "config.json", lambda c: c["quantization_config"].update(version=2))


def set_config_group(folder: Path, **fields: object) -> None:
    edit_json(
        folder / "config.json", lambda c: c["quantization_config"]["groups"][0].update(fields)
    )


def set_group(folder: Path, **fields: object) -> None:
    edit_json(folder / MANIFEST, lambda m: m["inputs"][0].update(fields))


@pytest.mark.parametrize(
    ("rule", "damage"),
    [
        ("F1", lambda f: edit_json(f / "config.json", lambda c: c.pop("quantization_config"))),
        ("F2", set_version),
        ("F2", lambda f: edit_json(f / MANIFEST, lambda m: m.update(version=True))),
        ("F11", lambda f: set_config_group(f, threshold=1.5)),
        ("F11", lambda f: set_config_group(f, dtype="BF16")),
        ("F11", lambda f: edit_json(f / "config.json", lambda c: c["quantization_config"]["groups"].pop())),
        ("H11", lambda f: edit_header(f / FIRST, lambda h: h["__metadata__"].update(more=""))),
        ("F6", lambda f: edit_json(f / "model.safetensors.index.json", lambda i: i["weight_map"].pop(f"{Q}.bias"))),
        ("M1", lambda f: set_group(f, linears=[Q, Q])),
        ("M1", lambda f: set_group(f, linears=[Q, K])),
        ("M1", lambda f: rename_tensor(f, f"{LINEAR}.weight_scale", "x.scale")),
        ("M2", lambda f: set_group(f, in_features=63)),
        ("M2", lambda f: set_group(f, outliers=0)),
        ("M4", lambda f: rename_tensor(f, f"{K}.bias", "x.bias")),
        ("C1", lambda f: rename_tensor(f, "model.decoder.final_layer_norm.bias", "x.weight_scale")),
        ("C2", lambda f: drop_tensor(f, f"{LINEAR}.outlier_index")),
        ("C3", lambda f: restate_tensor(f, f"{LINEAR}.weight", shape=[64, 160])),
        ("C3", lambda f: restate_tensor(f, f"{LINEAR}.bias", shape=[1, 64])),
        ("C5", lambda f: write_tensor(f, f"{LINEAR}.outlier_index", tensor_bytes(f, f"{LINEAR}.outlier_index")[:4], 4)),
    ],
)  # fmt: skip
def test_it_refuses_what_would_be_misread(
    small: Path, reader: ModuleType, rule: str, damage: Callable[[Path], object]
) -> None:
    reader.read_model(small)
    damage(small)
    with pytest.raises(reader.FormatError, match=rf"^\[{rule}\]"):
        reader.read_model(small)
