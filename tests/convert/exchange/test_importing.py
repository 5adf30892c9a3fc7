"""Imported folders: the values of the other quantizer bit for bit, groups as ``convert`` makes them, every byte verified."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import int8conv
from int8conv.errors import OutputExistsError, OutputOverlapError, UnsupportedModelError
from int8conv.formats.int8.folder import open_converted
from int8conv.formats.int8.verify import verify

from ...checkpoints import LLAMA, random_tensors, write_checkpoint
from .packed_checkpoints import bitsandbytes_tensors, compressed_tensors, write_packed
from .test_dense import own_values, tensors_of

Q, K, V = (f"model.layers.0.self_attn.{role}_proj" for role in "qkv")
DOWN = "model.layers.1.mlp.down_proj"


def test_bitsandbytes_is_taken_over_exactly(tmp_path: Path) -> None:
    source = write_packed(tmp_path / "source", bitsandbytes_tensors)
    (tmp_path / "source" / "LICENSE").write_text("free")
    report = int8conv.import_checkpoint(tmp_path / "source", tmp_path / "out")
    verify(tmp_path / "out")
    assert (report.quantized, report.outlier_columns, report.rounded) == (14, 0, 0)
    found, values = open_converted(tmp_path / "out"), own_values(tmp_path / "out")
    assert found.manifest.inputs[0].linears == (Q, K, V)
    assert {(g.outliers, g.threshold) for g in found.manifest.inputs} == {(0, 6.0)}
    assert found.manifest.source["quantizer"] == "bitsandbytes"
    assert found.manifest.source["codes_below_range"] == 0
    assert found.manifest.source["tensors"][f"{Q}.SCB"]["dtype"] == "F32"
    assert found.config["quantization_config"]["quant_method"] == "int8conv"
    assert (tmp_path / "out" / "LICENSE").read_text() == "free"
    for path in found.linears:
        scale = source[f"{path}.SCB"].numpy() / np.float32(127)
        codes = source[f"{path}.weight"].numpy()
        assert np.array_equal(values[f"{path}.weight"].numpy(), codes * scale[:, None])
    kept = tensors_of(tmp_path / "out")
    assert all(torch.equal(kept[name], t) for name, t in source.items() if t.dtype == torch.float16)
    # what convert makes of the same weights has the same scales, and nearly all of its codes
    write_checkpoint(tmp_path / "plain", LLAMA, random_tensors(LLAMA))
    int8conv.convert_checkpoint(tmp_path / "plain", tmp_path / "own", outliers="none")
    own = tensors_of(tmp_path / "own")
    assert torch.equal(own[f"{Q}.weight_scale"], kept[f"{Q}.weight_scale"])
    assert (own[f"{Q}.weight"] == kept[f"{Q}.weight"]).float().mean() > 0.999


def test_an_imported_model_runs(tmp_path: Path) -> None:
    write_packed(tmp_path / "source", bitsandbytes_tensors)
    int8conv.import_checkpoint(tmp_path / "source", tmp_path / "out", max_shard_bytes=60_000)
    int8conv.export_checkpoint(tmp_path / "out", tmp_path / "dense", dtype="float32")
    ids = torch.arange(24)[None]
    expected = int8conv.load(tmp_path / "dense").logits(ids)
    assert torch.allclose(int8conv.load(tmp_path / "out", mode="w8a16").logits(ids), expected, atol=1e-4)  # fmt: skip
    error = int8conv.load(tmp_path / "out", mode="w8a8").logits(ids) - expected
    assert error.norm() < 0.05 * expected.norm()


def test_compressed_tensors_but_for_the_lowest_code(tmp_path: Path) -> None:
    source = write_packed(tmp_path / "source", compressed_tensors)
    report = int8conv.import_checkpoint(tmp_path / "source", tmp_path / "out")
    verify(tmp_path / "out")
    values, below, total = own_values(tmp_path / "out"), 0, 0
    for name, value in values.items():
        codes = source[name]
        scale = source[name.replace("weight", "weight_scale")].float()
        expected = codes.clamp(min=-127).float() * scale
        assert torch.equal(value, expected), name
        below, total = below + int((codes == -128).sum()), total + codes.numel()
    assert below > 10
    told = open_converted(tmp_path / "out").manifest.source
    assert (told["quantizer"], told["codes_below_range"]) == ("compressed-tensors", below)
    (note,) = [note for note in report.notes if "-128" in note]
    assert note.startswith(f"{below:,} of {total:,} codes were -128")
    assert {g.threshold for g in open_converted(tmp_path / "out").manifest.inputs} == {None}


@pytest.mark.parametrize("model_type", ["llama", "unheard_of"])
def test_exactly_the_packed_linears_become_int8(tmp_path: Path, model_type: str) -> None:
    """Also a head, which ``convert`` keeps; not a linear that the quantizer skipped; zero rows are zero."""
    absmax = torch.ones(64)
    absmax[3] = 0
    config = LLAMA | {"model_type": model_type}
    others = {f"{Q}.SCB": absmax}
    source = write_packed(tmp_path / "source", bitsandbytes_tensors, config, skip=(DOWN,), others=others)  # fmt: skip
    int8conv.import_checkpoint(tmp_path / "source", tmp_path / "out")
    verify(tmp_path / "out")
    found = open_converted(tmp_path / "out").linears
    assert set(found) == {name.removesuffix(".SCB") for name in source if name.endswith("SCB")}
    assert "lm_head" in found
    assert DOWN not in found
    zero = own_values(tmp_path / "out")[f"{Q}.weight"][3]
    assert not zero.any()
    assert torch.equal(tensors_of(tmp_path / "out")[f"{DOWN}.weight"], source[f"{DOWN}.weight"])


def test_what_is_no_linear_and_outputs_that_are_not_touched(tmp_path: Path) -> None:
    packed = {f"model.extra.{n}": t for n, t in bitsandbytes_tensors(torch.rand(64, 64)).items()}
    write_packed(tmp_path / "extra", bitsandbytes_tensors, others=packed)
    with pytest.raises(UnsupportedModelError, match=r"model\.extra\.weight.*no linear"):
        int8conv.import_checkpoint(tmp_path / "extra", tmp_path / "out")
    write_packed(tmp_path / "source", bitsandbytes_tensors)
    with pytest.raises(OutputExistsError):
        int8conv.import_checkpoint(tmp_path / "source", tmp_path / "extra", force=True)
    with pytest.raises((OutputOverlapError, OutputExistsError)):
        int8conv.import_checkpoint(tmp_path / "source", tmp_path / "source", force=True)
    assert {path.name for path in tmp_path.iterdir()} == {"extra", "source"}
    int8conv.import_checkpoint(tmp_path / "source", tmp_path / "out")
    before = (tmp_path / "out" / "int8conv.json").read_bytes()
    int8conv.import_checkpoint(tmp_path / "source", tmp_path / "out", force=True)
    assert (tmp_path / "out" / "int8conv.json").read_bytes() == before


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="no bitsandbytes")
def test_what_bitsandbytes_itself_saves(tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")
    write_checkpoint(tmp_path / "plain")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", device_map="cpu", dtype=torch.float16,
        quantization_config=transformers.BitsAndBytesConfig(load_in_8bit=True),
    )  # fmt: skip
    model.save_pretrained(tmp_path / "source")
    int8conv.import_checkpoint(tmp_path / "source", tmp_path / "out")
    verify(tmp_path / "out")
    source = load_file(tmp_path / "source" / "model.safetensors")
    values = own_values(tmp_path / "out")
    assert json.loads((tmp_path / "source" / "config.json").read_text())["quantization_config"]["load_in_8bit"]  # fmt: skip
    assert len(values) == 14
    for name, value in values.items():
        scale = source[name.replace("weight", "SCB")] / 127
        assert torch.equal(value, source[name].float() * scale[:, None])
