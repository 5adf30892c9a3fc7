"""Weights of models that the runtime cannot run: what the tensors' sizes add up to, and what a conversion then has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import int8conv
from int8conv.convert.weights_alone import weights_alone
from int8conv.errors import UnsupportedModelError


@pytest.fixture
def unknown(tmp_path: Path) -> Path:
    """A family that nobody knows: 2 linears of 64 x 32, a router, a norm, an embedding, integers."""
    linears = {f"blocks.{n}.up.weight": torch.ones(64, 32).half() for n in range(2)}
    others = {
        "blocks.0.gate.weight": torch.ones(4, 32).half(), "norm.weight": torch.ones(32),
        "embed.weight": torch.ones(50, 32).half(), "steps": torch.ones(3, dtype=torch.int64),
    }  # fmt: skip
    save_file(linears | others, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "sphinx", "hidden_size": 32}')
    return tmp_path


_KEPT = {
    "kept in 16 bits": 2 * (4 * 32 + 50 * 32),
    "kept in 32 bits": 4 * 32,
    "integers and masks": 3 * 8,
}


def test_as_convert_would_make_them(unknown: Path, tmp_path: Path) -> None:
    found = weights_alone(unknown)
    assert found.weights == {
        "int8 weights": 2 * 64 * 32, "outlier columns": 2 * 64 * 16 * 2, "outlier indices": 2 * 16 * 4,
        "row scales": 2 * 64 * 4, **_KEPT,
    }  # fmt: skip
    assert found.estimated
    assert found.total == sum(found.weights.values())
    assert found.weights_16bit == 2 * (2 * 64 * 32 + 4 * 32 + 50 * 32 + 32) + 3 * 8

    int8conv.convert_checkpoint(unknown, tmp_path / "int8", outliers="none")
    converted = weights_alone(tmp_path / "int8")
    assert not converted.estimated
    padding = converted.weights.pop("padding", 0)
    assert padding < 4096
    assert converted.weights == {
        "int8 weights": 2 * 64 * 32, "row scales": 2 * 64 * 4, **_KEPT,
    }  # fmt: skip


def test_as_they_are(unknown: Path) -> None:
    assert weights_alone(unknown, convert=False).weights == {
        "F16": 2 * (2 * 64 * 32 + 4 * 32 + 50 * 32), "F32": 4 * 32, "I64": 3 * 8,
    }  # fmt: skip


def test_what_has_no_linear_is_refused(unknown: Path) -> None:
    save_file({"norm.weight": torch.ones(32)}, unknown / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match="no linear"):
        weights_alone(unknown)
