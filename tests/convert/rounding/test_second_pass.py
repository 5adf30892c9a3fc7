"""A conversion with compensated rounding: for the activations of the source, the same bytes however it was run, provably its source's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from int8conv.convert.compare import compare
from int8conv.convert.converter import convert_checkpoint
from int8conv.convert.outliers.texts import RANDOM_TOKENS, calibration_windows
from int8conv.errors import CalibrationError, SourceMismatchError
from int8conv.formats.int8.folder import open_converted
from int8conv.formats.int8.names import MOST_STEPS
from int8conv.formats.int8.verify import verify
from int8conv.formats.safetensors.stored import read_array
from int8conv.formats.source.checkpoint import open_checkpoint
from int8conv.runtime.models.architecture import Module, read_architecture
from int8conv.runtime.weights.mapping import read_tensor
from int8conv.runtime.weights.streaming import BlockStream
from int8conv.runtime.weights.weights import CheckpointWeights

from ...checkpoints import LLAMA, random_tensors, write_checkpoint
from ...formats.damage import rejected, tensor_bytes, write_tensor

PATH = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``source`` with outlier inputs, and its conversions ``nearest`` and ``compensated``; not to be changed."""
    folder = tmp_path_factory.mktemp("pair")
    tensors = random_tensors(LLAMA)
    for name, tensor in tensors.items():
        if name.endswith("layernorm.weight"):
            tensor[:8] = 6
    tensors[f"{PATH}.weight"][4] = 0
    source = write_checkpoint(folder / "source", LLAMA, tensors)
    convert_checkpoint(source, folder / "nearest", outlier_rule="error")
    report = convert_checkpoint(source, folder / "compensated", rounding="compensated", jobs=2)
    assert any("no usable tokenizer" in note for note in report.notes)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def inputs_of(source: Path) -> dict[str, Tensor]:
    """What enters every linear of the source, by the path of the input's first one."""
    checkpoint = open_checkpoint(source)
    architecture = read_architecture(checkpoint.config, checkpoint.tensors)
    windows, _ = calibration_windows(checkpoint, architecture, (), None, None, 0)
    found: dict[str, list[Tensor]] = {}

    def observe(module: Module, x: Tensor) -> None:
        found.setdefault(module.path, []).append(x.flatten(0, -2).double())

    stream = BlockStream(architecture, CheckpointWeights(checkpoint, torch.float32), windows)
    for layer in range(architecture.config.num_layers):
        stream.advance(layer, observe)
    return {
        module.path: torch.cat(found[group[0].path])
        for group in architecture.groups()
        for module in group
    }


def test_outputs_are_closer_and_all_else_is_the_same(pair: Path) -> None:
    near, far = open_converted(pair / "nearest"), open_converted(pair / "compensated")
    source, inputs = open_checkpoint(pair / "source"), inputs_of(pair / "source")
    assert len(far.linears) == 14
    for path, linear in far.linears.items():
        other = near.linears[path]
        assert linear.outlier_index is not None and other.outlier_index is not None
        assert linear.outlier_weight is not None and other.outlier_weight is not None
        index = read_array(linear.outlier_index)
        np.testing.assert_array_equal(read_array(linear.scale), read_array(other.scale))
        np.testing.assert_array_equal(index, read_array(other.outlier_index))
        kept = read_array(linear.outlier_weight)
        np.testing.assert_array_equal(kept, read_array(other.outlier_weight))
        weight = read_tensor(source.tensors[f"{path}.weight"])
        assert kept.tobytes() == weight[:, index].contiguous().numpy().tobytes()
        steps = read_array(linear.weight).astype(int) - read_array(other.weight)
        assert 0 < np.abs(steps).max() <= MOST_STEPS
        assert not steps[:, index].any()
        errors = []
        for each in (linear, other):
            lost = weight.double() - torch.from_numpy(
                read_array(each.weight)[..., 0] * read_array(each.scale)[:, None].astype(np.float64)
            )
            lost[:, index] = 0
            errors.append(float((inputs[path] @ lost.t()).norm()))
        assert errors[0] < 0.98 * errors[1], path
    for kept_tensor in near.others():
        assert tensor_bytes(pair / "nearest", kept_tensor.name) == tensor_bytes(
            pair / "compensated", kept_tensor.name
        )


def test_the_manifest_says_so(pair: Path) -> None:
    manifest = json.loads((pair / "compensated" / "int8conv.json").read_text())
    assert manifest["options"]["rounding"] == "compensated"
    assert manifest["options"]["outlier_rule"] == "error"  # what is exact there is best chosen so
    about = manifest["calibration"]["rounding"]
    assert (about["tokens"], about["most_steps"]) == (RANDOM_TOKENS, MOST_STEPS)


def test_the_same_bytes_for_other_jobs_and_after_a_stop(pair: Path, tmp_path: Path) -> None:
    convert_checkpoint(pair / "source", tmp_path / "one", rounding="compensated", jobs=1)
    assert files(tmp_path / "one") == files(pair / "compensated")

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "convert" and done >= 0.9 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(
            pair / "source", tmp_path / "out", rounding="compensated", jobs=1, progress=stop
        )
    report = convert_checkpoint(pair / "source", tmp_path / "out", rounding="compensated")
    assert 7 < report.resumed < report.tensors  # into the second layer
    assert files(tmp_path / "out") == files(pair / "compensated")


def test_the_source_proves_it(pair: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(pair / "compensated", tmp_path / "out"))
    verify(open_converted(out))
    compared = compare(out, pair / "source")
    assert compared.rounding == compared.to_json(30)["rounding"] == "compensated"
    worst = compared.worst_sqnr_db
    best = compare(pair / "nearest", pair / "source")
    assert best.rounding == "nearest"
    assert worst is not None and best.worst_sqnr_db is not None and worst < best.worst_sqnr_db

    linear = open_converted(out).linears[PATH]
    assert linear.outlier_index is not None
    index, width = read_array(linear.outlier_index), linear.in_features
    near = read_array(open_converted(pair / "nearest").linears[PATH].weight)[..., 0]
    inner = next(c for c in range(width) if c not in index and 0 <= near[0, c] < 100)
    far = int(near[0, inner]) + MOST_STEPS
    first = tensor_bytes(out, f"{PATH}.weight")
    for row, column, code in ((0, inner, far + 1), (2, int(index[0]), 1), (4, inner, 1)):
        position = row * width + column
        write_tensor(out, f"{PATH}.weight", bytes([code]), position)
        with rejected(SourceMismatchError, f"'{PATH}.weight'", f"row {row} "):
            compare(out, pair / "source")
        write_tensor(out, f"{PATH}.weight", first[position : position + 1], position)
    write_tensor(out, f"{PATH}.weight", bytes([far]), inner)  # as far as a code may be
    assert compare(out, pair / "source").rounding == "compensated"


def test_without_columns_and_what_cannot_be_run(tmp_path: Path) -> None:
    config = LLAMA | {"num_hidden_layers": 1}
    tensors = random_tensors(config)
    source = write_checkpoint(tmp_path / "source", config, tensors)
    convert_checkpoint(
        source, tmp_path / "out", outliers="none", rounding="compensated", keep=["q_proj"]
    )
    converted = open_converted(tmp_path / "out")
    assert len(converted.linears) == 6
    assert converted.manifest.calibration is not None
    assert compare(tmp_path / "out", source).rounding == "compensated"
    unknown = write_checkpoint(tmp_path / "unknown", config | {"model_type": "new"}, tensors)
    report = convert_checkpoint(unknown, tmp_path / "other", rounding="compensated")
    assert any("nearest codes instead" in note for note in report.notes)
    large = random_tensors(config, torch.float32)
    large["model.layers.0.post_attention_layernorm.weight"][:] = 1e20
    large["model.layers.0.mlp.gate_proj.weight"] *= 1e15
    large["model.layers.0.mlp.up_proj.weight"] *= 1e15
    overflowing = write_checkpoint(tmp_path / "overflowing", config, large)
    with rejected(CalibrationError, "NaN or infinite"):
        convert_checkpoint(overflowing, tmp_path / "never", outliers="none", rounding="compensated")
