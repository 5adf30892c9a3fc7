"""Experts that are one tensor per layer in the source, and are again in a plain checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import int8conv
from int8conv.errors import UnsupportedModelError

from ...checkpoints import random_tensors, write_checkpoint

CONFIG: dict[str, Any] = {
    "model_type": "gpt_oss", "vocab_size": 96, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 3, "num_experts_per_tok": 2,
    "max_position_embeddings": 64, "sliding_window": 8,
}  # fmt: skip


def stacked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As the family's files have them: ``[experts, in, out]``, and biases ``[experts, out]``."""
    found = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for layer in range(2):
        for part in ("gate_up_proj", "down_proj"):
            stack = f"model.layers.{layer}.mlp.experts.{part}"
            for kind, name in (("weight", stack), ("bias", f"{stack}_bias")):
                of_all = [tensors[f"model.layers.{layer}.mlp.experts.{n}.{part}.{kind}"] for n in range(3)]  # fmt: skip
                each = [one.t() if kind == "weight" else one for one in of_all]
                found[name] = torch.stack(each).contiguous()
    return found


def test_stacks_come_back(tmp_path: Path) -> None:
    source = stacked(random_tensors(CONFIG))
    write_checkpoint(tmp_path / "source", CONFIG, source)
    int8conv.convert_checkpoint(tmp_path / "source", tmp_path / "int8", outliers="none")
    ids = torch.arange(3, 15)[None]
    own = int8conv.load(tmp_path / "int8", mode="w8a16").logits(ids)
    for dtype, torch_dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        out = tmp_path / dtype
        int8conv.export_checkpoint(tmp_path / "int8", out, dtype=dtype)
        found = load_file(out / "model-00001-of-00001.safetensors")
        assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in source.items()}
        for name, tensor in found.items():
            expected = source[name].to(torch_dtype)
            assert tensor.dtype == torch_dtype
            exact = "experts" not in name or name.endswith("_bias")
            if exact and "_proj.weight" not in name:
                assert torch.equal(tensor, expected), name
            else:
                assert (tensor - expected).abs().max() < 0.01 * expected.abs().max(), name
        if dtype == "float32":
            assert (int8conv.load(out).logits(ids) - own).abs().max() <= 1e-5
    with pytest.raises(UnsupportedModelError, match="no names for single experts"):
        int8conv.export_checkpoint(tmp_path / "int8", tmp_path / "w8a8", to="compressed-tensors")


def test_stacks_of_which_some_are_kept(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "source", CONFIG, stacked(random_tensors(CONFIG)))
    int8conv.convert_checkpoint(
        tmp_path / "source", tmp_path / "int8", outliers="none", keep=[r"layers\.1\..*experts\.2\."]
    )
    with pytest.raises(UnsupportedModelError, match=r"layers\.1\.mlp\.experts\.2.*kept in 16 bits"):
        int8conv.export_checkpoint(tmp_path / "int8", tmp_path / "out")
