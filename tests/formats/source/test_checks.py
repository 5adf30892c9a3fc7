"""A source that is quantized already is refused, whoever quantized it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from int8conv.errors import AlreadyQuantizedError
from int8conv.formats.source.checkpoint import open_checkpoint
from int8conv.formats.source.checks import check_not_quantized

from ...checkpoints import LLAMA, random_tensors, write_checkpoint
from ..damage import edit_json, rejected


def test_a_plain_source_passes(source: Path) -> None:
    check_not_quantized(open_checkpoint(source))


@pytest.mark.parametrize("section", [None, {}])
def test_an_empty_section_passes(source: Path, section: object) -> None:
    edit_json(source / "config.json", lambda config: config.update(quantization_config=section))
    check_not_quantized(open_checkpoint(source))


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "int8conv"])
def test_a_config_that_says_so(source: Path, key: str, method: str) -> None:
    edit_json(source / "config.json", lambda c: c.update({key: {"quant_method": method}}))
    with rejected(AlreadyQuantizedError, str(source / "config.json"), key, method):
        check_not_quantized(open_checkpoint(source))


@pytest.mark.parametrize("method", [["fp8"], {"fp8": 1}, [], {}, 8, True, None])
def test_a_method_that_is_no_text(source: Path, method: object) -> None:
    section = {"quant_method": method, "bits": 8}
    edit_json(source / "config.json", lambda config: config.update(quantization_config=section))
    with rejected(AlreadyQuantizedError, str(source / "config.json"), repr(method)):
        check_not_quantized(open_checkpoint(source))


def test_a_section_of_another_kind(source: Path) -> None:
    edit_json(source / "config.json", lambda config: config.update(quantization_config="gptq"))
    with rejected(AlreadyQuantizedError, str(source / "config.json")):
        check_not_quantized(open_checkpoint(source))


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("model.layers.0.mlp.up_proj.SCB", "bitsandbytes"),
        ("model.layers.0.mlp.up_proj.weight.absmax", "bitsandbytes"),
        ("model.layers.0.mlp.up_proj.weight_format", "bitsandbytes"),
        ("model.layers.0.mlp.up_proj.qweight", "GPTQ"),
        ("model.layers.0.mlp.up_proj.qzeros", "AWQ"),
        ("model.layers.0.mlp.up_proj.weight_packed", "compressed-tensors"),
        ("model.layers.0.mlp.up_proj.weight_zero_point", "compressed-tensors"),
        ("model.layers.0.mlp.up_proj.weight_scale", "scale"),
        ("model.layers.0.mlp.up_proj.weight_scale_inv", "FP8"),
        ("model.layers.0.mlp.up_proj.outlier_index", "int8conv"),
        ("model.layers.0.mlp.up_proj.outlier_weight", "int8conv"),
        ("int8conv.padding.0", "int8conv"),
    ],
)
def test_a_tensor_that_says_so(tmp_path: Path, name: str, method: str) -> None:
    tensors = random_tensors(LLAMA) | {name: torch.zeros(4)}
    source = write_checkpoint(tmp_path / "quantized", LLAMA, tensors)
    with rejected(AlreadyQuantizedError, "model.safetensors", f"'{name}'", method):
        check_not_quantized(open_checkpoint(source))


def test_a_converted_folder_is_no_source(converted: Path) -> None:
    with rejected(AlreadyQuantizedError, str(converted), "int8conv"):
        check_not_quantized(open_checkpoint(converted))
