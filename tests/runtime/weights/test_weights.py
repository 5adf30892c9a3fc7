"""A converted folder is mapped, not copied: tensors share the file's memory, and a group's are one matrix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import int8conv
from int8conv.errors import ShapeError
from int8conv.formats.int8.folder import open_converted
from int8conv.formats.safetensors.stored import read_array
from int8conv.formats.source.checkpoint import open_checkpoint
from int8conv.runtime.models.architecture import Architecture, read_architecture
from int8conv.runtime.weights.weights import CheckpointWeights, ConvertedWeights

from ...checkpoints import LLAMA, random_tensors, write_checkpoint


def architecture_of(folder: Path) -> Architecture:
    checkpoint = open_checkpoint(folder)
    return read_architecture(checkpoint.config, checkpoint.tensors)


def test_qkv_is_one_view(example_int8: Path) -> None:
    converted = open_converted(example_int8)
    weights = ConvertedWeights(converted, torch.float32)
    architecture = architecture_of(example_int8)
    layer = architecture.layer(0)
    linears = [converted.linears[layer[role].path] for role in "qkv"]
    fused = weights._mixed([layer[role] for role in "qkv"], linears)
    one = weights._files.tensor(linears[0].weight)
    assert fused.codes.shape == (256 + 128 + 128, 256)
    assert fused.codes.data_ptr() == one.data_ptr()
    assert fused.codes.is_contiguous()
    assert fused.scale.data_ptr() == weights._files.tensor(linears[0].scale).data_ptr()
    parts = [torch.from_numpy(read_array(linear.weight).copy()).squeeze(-1) for linear in linears]
    assert torch.equal(fused.codes, torch.cat(parts))


@pytest.mark.parametrize("keep", [["v_proj"], ["q_proj"], ["k_proj", "gate"], ["self_attn"], ["."]])
def test_linears_that_were_kept_run_beside_quantized_ones(
    source: Path, tmp_path: Path, keep: list[str]
) -> None:
    int8conv.convert_checkpoint(source, tmp_path / "kept", keep=keep)
    int8conv.convert_checkpoint(source, tmp_path / "all")
    ids = torch.arange(40)[None]
    truth, kept, quantized = (
        int8conv.load(tmp_path / name).logits(ids) for name in ("source", "kept", "all")
    )
    assert (kept - truth).norm() < 1.1 * (quantized - truth).norm()
    if keep == ["."]:
        assert (kept - truth).abs().max() < 1e-4


def test_groups_of_the_manifest_decide_what_is_fused(example: Path, tmp_path: Path) -> None:
    """A writer may put every linear into an input of its own: what does not lie together is not read together."""
    converted = tmp_path / "out"
    int8conv.convert_checkpoint(example, converted, outliers="none")
    ids = torch.arange(30)[None]
    before = int8conv.load(converted, mode="w8a16").logits(ids)
    path = converted / "int8conv.json"
    manifest = json.loads(path.read_text())
    manifest["inputs"] = [
        group | {"linears": [linear]} for group in manifest["inputs"] for linear in group["linears"]
    ]
    path.write_text(json.dumps(manifest))
    config = json.loads((converted / "config.json").read_text())
    del config["quantization_config"]["groups"]
    (converted / "config.json").write_text(json.dumps(config))
    after = int8conv.load(converted, mode="w8a16").logits(ids)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_head_and_embedding_stay_in_16_bits(example_int8: Path) -> None:
    opened = open_converted(example_int8)
    weights = ConvertedWeights(opened, torch.float32)
    module = architecture_of(example_int8).outside()["embed"]
    stored = opened.checkpoint.tensor(f"{module.path}.weight")
    assert stored.dtype == "F16"
    rows = torch.tensor([[3, 0], [7, 3]])
    expected = torch.from_numpy(read_array(stored).astype("float32"))[rows]
    assert torch.equal(weights.lookup(module)(rows), expected)


def test_a_source_in_its_own_dtype_is_mapped(source: Path) -> None:
    weights = CheckpointWeights(open_checkpoint(source), torch.float16)
    module = architecture_of(source).outside()["embed"]
    stored = weights.checkpoint.tensor("model.embed_tokens.weight")
    assert weights.tensor(module).data_ptr() == weights._files.tensor(stored).data_ptr()


def test_a_shape_that_the_config_does_not_imply_is_named(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA)
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(160, 63, dtype=torch.float16)
    folder = write_checkpoint(tmp_path / "source", tensors=tensors)
    weights = CheckpointWeights(open_checkpoint(folder), torch.float32)
    with pytest.raises(
        ShapeError, match=r"layers\.1\.mlp\.up_proj.*expected \[160, 64\], found \[160, 63\]"
    ):
        weights.projection([architecture_of(folder).layer(1)["up"]])
