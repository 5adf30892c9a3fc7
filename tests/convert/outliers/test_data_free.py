"""The data-free rule finds outliers that norm gains and weights show, and keeps nothing where they show none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from int8conv.convert.converter import convert_checkpoint
from int8conv.formats.int8.folder import open_converted
from int8conv.formats.safetensors.stored import read_array

from ...checkpoints import LLAMA, edit_config, random_tensors, write_checkpoint

CHANNELS = [3, 17, 40]
Q, OUT = "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.o_proj"


def with_gains(tensors: dict[str, Tensor], factor: float = 30.0) -> dict[str, Tensor]:
    """Channels of layer 1's first norm scaled up, and those columns of the weights down: the same function."""
    tensors["model.layers.1.input_layernorm.weight"][CHANNELS] *= factor
    for name in "qkv":
        tensors[f"model.layers.1.self_attn.{name}_proj.weight"][:, CHANNELS] /= factor
    return tensors


def kept(folder: Path) -> dict[str, list[int]]:
    converted = open_converted(folder)
    return {
        group.linears[0]: read_array(index).tolist() if (index := converted.linears[group.linears[0]].outlier_index) else []
        for group in converted.manifest.inputs
    }  # fmt: skip


@pytest.mark.parametrize("model_type", ["llama", "unknown"])
def test_gains_show_outliers(tmp_path: Path, model_type: str) -> None:
    source = write_checkpoint(tmp_path / "source", tensors=with_gains(random_tensors(LLAMA)))
    edit_config(source, model_type=model_type)
    outliers: Any = (
        "data-free" if model_type == "llama" else "calibrated"
    )  # which an unknown one cannot be
    report = convert_checkpoint(source, tmp_path / "out", outliers=outliers)
    columns = kept(tmp_path / "out")
    assert set(CHANNELS) <= set(columns[Q])
    assert len(columns[Q]) == 16
    assert columns["model.layers.0.self_attn.q_proj"] == []
    assert report.outlier_columns == sum(map(len, columns.values()))
    manifest = open_converted(tmp_path / "out").manifest
    assert manifest.calibration is not None
    assert "data-free" in manifest.calibration["rule"]


def test_the_net_is_six_sigmas_of_the_other_gains(tmp_path: Path) -> None:
    tensors = with_gains(random_tensors(LLAMA))
    source = write_checkpoint(tmp_path / "source", tensors=tensors)
    convert_checkpoint(source, tmp_path / "out", outliers="data-free")
    groups = {group.linears[0]: group for group in open_converted(tmp_path / "out").manifest.inputs}
    gains = tensors["model.layers.1.input_layernorm.weight"].float().abs()
    rest = gains.sort().values[: 64 - 16]
    threshold = groups[Q].threshold
    assert threshold is not None
    assert float(rest.max()) * 6 <= threshold < 6 * 30


def test_large_columns_of_a_weight(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA)
    tensors[f"{OUT}.weight"][:, 5] = 4.0
    convert_checkpoint(
        write_checkpoint(tmp_path / "source", tensors=tensors),
        tmp_path / "out",
        outliers="data-free",
    )
    columns = kept(tmp_path / "out")
    assert 5 in columns[OUT]
    assert {len(found) for path, found in columns.items() if path != OUT} == {0}


def test_bfloat16_sources_are_read(tmp_path: Path) -> None:
    tensors = with_gains(random_tensors(LLAMA, torch.bfloat16))
    convert_checkpoint(
        write_checkpoint(tmp_path / "source", tensors=tensors),
        tmp_path / "out",
        outliers="data-free",
    )
    assert set(CHANNELS) <= set(kept(tmp_path / "out")[Q])


def test_the_cap_holds(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", tensors=with_gains(random_tensors(LLAMA)))
    report = convert_checkpoint(source, tmp_path / "out", outliers="data-free", max_outliers=0)
    assert report.outlier_columns == 0
