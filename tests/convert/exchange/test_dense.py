"""A dense export has the format's own values, in the source's shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import int8conv
from int8conv.convert.exchange.dense import dense_config, usual_dtype
from int8conv.errors import HalfOverflowError, UnsupportedModelError
from int8conv.formats.int8.folder import open_converted
from int8conv.runtime.weights.mapping import TORCH_DTYPES

from ...checkpoints import LLAMA, random_tensors, write_checkpoint

GPT2: dict[str, Any] = {
    "model_type": "gpt2", "vocab_size": 96, "n_embd": 64, "n_layer": 1, "n_head": 4, "n_positions": 64, "n_inner": 160,
}  # fmt: skip
NAMES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}


def tensors_of(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        found |= {n: t for n, t in load_file(shard).items() if "padding" not in n}
    return found


def own_values(folder: Path) -> dict[str, Tensor]:
    """By the formula of SPEC.md, in float32."""
    tensors = tensors_of(folder)
    values = {}
    for path in open_converted(folder).linears:
        codes = tensors[f"{path}.weight"].squeeze(-1)
        value = codes.float() * tensors[f"{path}.weight_scale"][:, None]
        if f"{path}.outlier_index" in tensors:
            kept = tensors[f"{path}.outlier_weight"].float()
            value[:, tensors[f"{path}.outlier_index"].long()] = kept
        values[f"{path}.weight"] = value
    return values


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_values_are_the_formats_own_rounded_once(tmp_path: Path, dtype: str) -> None:
    source = random_tensors(LLAMA) | {"model.extra.ids": torch.arange(5), "model.extra.scale": torch.rand(3) / 3}  # fmt: skip
    write_checkpoint(tmp_path / "source", LLAMA, source)
    int8conv.convert_checkpoint(tmp_path / "source", tmp_path / "int8")
    assert all(x.outliers for x in open_converted(tmp_path / "int8").linears.values())
    report = int8conv.export_checkpoint(
        tmp_path / "int8", tmp_path / "out", dtype=dtype, max_shard_bytes=60_000
    )
    found, own, kept = tensors_of(tmp_path / "out"), own_values(tmp_path / "int8"), tensors_of(tmp_path / "int8")  # fmt: skip
    assert found.keys() == source.keys()
    assert (report.linears, report.tensors, report.dtype) == (len(own), len(found), dtype)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    torch_dtype = TORCH_DTYPES[NAMES[dtype]]
    for name, tensor in found.items():
        assert tensor.shape == source[name].shape
        if name.startswith("model.extra"):
            assert torch.equal(tensor, source[name])
        else:
            expected = own.get(name, kept.get(name))
            assert expected is not None
            assert tensor.dtype == torch_dtype
            assert torch.equal(tensor, expected.to(torch_dtype)), name


@pytest.mark.parametrize("config", [GPT2, GPT2 | {"model_type": "imagegpt"}], ids=["known", "not"])
def test_conv1d_lies_as_in_the_source(tmp_path: Path, config: dict[str, Any]) -> None:
    source = random_tensors(GPT2)
    write_checkpoint(tmp_path / "source", config, source)
    int8conv.convert_checkpoint(tmp_path / "source", tmp_path / "int8", outliers="none")
    int8conv.export_checkpoint(tmp_path / "int8", tmp_path / "out", dtype="float32")
    found = tensors_of(tmp_path / "out")
    assert found.keys() == source.keys()
    for name, tensor in found.items():
        assert torch.allclose(tensor, source[name].float(), atol=2e-3), name
    turned = own_values(tmp_path / "int8")["transformer.h.0.attn.c_proj.weight"].t()
    assert torch.equal(found["transformer.h.0.attn.c_proj.weight"], turned)


def test_what_cannot_be_dense(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA, torch.bfloat16)
    tensors["model.embed_tokens.weight"][3, 3] = 1e30
    write_checkpoint(tmp_path / "source", LLAMA, tensors)
    int8conv.convert_checkpoint(tmp_path / "source", tmp_path / "int8", outliers="none")
    with pytest.raises(HalfOverflowError, match=r"embed_tokens.*row 3 .*--dtype bfloat16"):
        int8conv.export_checkpoint(tmp_path / "int8", tmp_path / "out", dtype="float16")
    stack = {"model.layers.0.mlp.experts.gate_up_proj": torch.randn(2, 64, 160).half()}
    config = LLAMA | {"model_type": "unheard_of"}
    write_checkpoint(tmp_path / "stacks", config, random_tensors(LLAMA) | stack)
    int8conv.convert_checkpoint(tmp_path / "stacks", tmp_path / "int8s", outliers="none")
    with pytest.raises(
        UnsupportedModelError, match=r"experts.gate_up_proj\[0\].*stacks of experts"
    ):
        int8conv.export_checkpoint(tmp_path / "int8s", tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"source", "int8", "stacks", "int8s"}


def test_dtypes_of_configs() -> None:
    assert usual_dtype({"torch_dtype": "bfloat16"}) == usual_dtype({"dtype": "bfloat16"}) == "bfloat16"  # fmt: skip
    assert usual_dtype({}) == usual_dtype({"dtype": "auto"}) == "float16"
    assert dense_config({"a": 1, "quantization_config": {}}, "float32") == {"a": 1, "torch_dtype": "float32"}  # fmt: skip
    assert dense_config({"dtype": "float16"}, "float32") == {"dtype": "float32"}
