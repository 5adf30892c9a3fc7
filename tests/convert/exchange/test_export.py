"""Exports: transformers computes with them what the runtime computes; nothing is replaced; what is not whole is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import int8conv
from int8conv.errors import (
    ArgumentError,
    ChecksumError,
    Int8convError,
    NotConvertedError,
    NotFoundError,
    OutputExistsError,
    OutputOverlapError,
)

from ...checkpoints import write_checkpoint


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    write_checkpoint(folder / "source")
    int8conv.convert_checkpoint(folder / "source", folder / "int8")
    return folder / "int8"


def test_transformers_gives_the_runtimes_logits(int8: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    int8conv.export_checkpoint(int8, tmp_path / "out", dtype="float32")
    ids = torch.arange(24)[None]
    expected = int8conv.load(int8, mode="w8a16").logits(ids)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert next(model.parameters()).dtype == torch.float32
    assert torch.allclose(model(ids).logits.float(), expected, atol=1e-4)
    plain = int8conv.load(tmp_path / "out").logits(ids)
    assert torch.allclose(plain, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"to": "onnx"}, "to: expected dense or compressed-tensors or gguf, found onnx"),
        ({"to": "compressed-tensors", "dtype": "float16"}, "dtype is an option of dense"),
        ({"fold_outliers": True}, "only compressed-tensors has outlier columns to fold"),
        ({"dtype": "int4"}, "dtype: expected float16 or bfloat16 or float32, found int4"),
        ({"max_shard_bytes": 0}, "max_shard_bytes"),
    ],
)
def test_options_that_cannot_be(int8: Path, tmp_path: Path, options: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        int8conv.export_checkpoint(int8, tmp_path / "out", **options)


def test_nothing_is_replaced_and_nothing_is_half_there(int8: Path, tmp_path: Path) -> None:
    def refused(error: type[Int8convError], text: str, path: Path, out: Path) -> None:
        with pytest.raises(error, match=text) as caught:
            int8conv.export_checkpoint(path, out)
        assert "\n" not in str(caught.value)

    (tmp_path / "mine").mkdir()
    refused(OutputExistsError, "replaces nothing", int8, tmp_path / "mine")
    refused(OutputExistsError, "replaces nothing", int8, int8)
    refused(OutputOverlapError, "lies inside", int8, int8 / "config.json" / "x")
    refused(NotConvertedError, "int8conv convert", int8.parent / "source", tmp_path / "out")
    refused(NotFoundError, "no such", tmp_path / "absent", tmp_path / "out")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in int8.iterdir():
        data = bytearray(path.read_bytes())
        data[-1] ^= path.suffix == ".safetensors"
        (damaged / path.name).write_bytes(data)
    refused(ChecksumError, "checksum", damaged, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "damaged"}
    assert list((tmp_path / "mine").iterdir()) == []
