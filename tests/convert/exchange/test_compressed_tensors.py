"""Exports as compressed-tensors: its own dequantization gives the values of the folder, or says what folding costs."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import int8conv
from int8conv.errors import ArgumentError, UnsupportedFeatureError
from int8conv.formats.int8.verify import verify

from ...checkpoints import LLAMA, OPT, edit_config, random_tensors, write_checkpoint
from .test_dense import GPT2, own_values, tensors_of

TO: Any = {"to": "compressed-tensors"}


def dequantized(folder: Path) -> dict[str, torch.Tensor]:
    """As compressed-tensors does it: codes in the dtype of the scales, times the scales."""
    tensors = tensors_of(folder)
    return {
        name: tensor.to(tensors[f"{name}_scale"].dtype) * tensors[f"{name}_scale"]
        for name, tensor in tensors.items()
        if f"{name}_scale" in tensors
    }


@pytest.mark.parametrize("config", [LLAMA, OPT, LLAMA | {"model_type": "unheard_of"}], ids=["llama", "opt", "unknown"])  # fmt: skip
def test_without_columns_nothing_changes(tmp_path: Path, config: dict[str, Any]) -> None:
    known = LLAMA if config["model_type"] == "unheard_of" else config
    write_checkpoint(tmp_path / "source", config, random_tensors(known))
    int8conv.convert_checkpoint(
        tmp_path / "source", tmp_path / "int8", outliers="none", keep=[r"layers\.1\..*k_proj"]
    )
    report = int8conv.export_checkpoint(tmp_path / "int8", tmp_path / "out", **TO)
    before, after = own_values(tmp_path / "int8"), dequantized(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert (report.linears, report.folded, report.dtype) == (len(after), {}, None)
    old, new = tensors_of(tmp_path / "int8"), tensors_of(tmp_path / "out")
    assert old.keys() == new.keys()
    assert all(torch.equal(t.reshape(new[name].shape), new[name]) for name, t in old.items())
    section = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert section["format"] == "int-quantized"
    assert "lm_head" in section["ignore"]
    assert any("layers.1" in path and "k_proj" in path for path in section["ignore"])
    assert any("embed_tokens" in path for path in section["ignore"]) == (known != config)
    assert not {f"{path}.weight" for path in section["ignore"]} & after.keys()
    int8conv.import_checkpoint(tmp_path / "out", tmp_path / "again")
    verify(tmp_path / "again")
    again = tensors_of(tmp_path / "again")
    assert again.keys() == old.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in old.items())


def test_columns_are_folded_on_request_at_a_cost_that_is_told(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "source")
    int8conv.convert_checkpoint(tmp_path / "source", tmp_path / "int8")
    with pytest.raises(ArgumentError, match=r"no outlier columns.*14 linears.*--fold-outliers"):
        int8conv.export_checkpoint(tmp_path / "int8", tmp_path / "out", **TO)
    report = int8conv.export_checkpoint(
        tmp_path / "int8", tmp_path / "out", fold_outliers=True, **TO
    )
    assert any("no outlier fallback" in note for note in report.notes)
    after = dequantized(tmp_path / "out")
    assert not any("outlier" in name for name in tensors_of(tmp_path / "out"))
    for name, value in own_values(tmp_path / "int8").items():
        step = value.abs().amax(1, keepdim=True) / 127
        assert ((after[name] - value).abs() <= 0.5001 * step).all()
        noise = (after[name] - value).double().square().sum()
        sqnr = 10 * math.log10(value.double().square().sum() / noise)
        assert report.folded[name.removesuffix(".weight")] == pytest.approx(sqnr, abs=0.01)


def test_what_is_no_linear_there(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "source")
    int8conv.convert_checkpoint(
        tmp_path / "source", tmp_path / "int8", outliers="none", quantize=["embed_tokens"]
    )
    with pytest.raises(UnsupportedFeatureError, match=r"embed_tokens\.weight.*an embedding.*dense"):
        int8conv.export_checkpoint(tmp_path / "int8", tmp_path / "out", **TO)
    write_checkpoint(tmp_path / "gpt2", GPT2, random_tensors(GPT2))
    int8conv.convert_checkpoint(tmp_path / "gpt2", tmp_path / "int8g", outliers="none")
    with pytest.raises(UnsupportedFeatureError, match=r"c_attn\.weight.*transposed"):
        int8conv.export_checkpoint(tmp_path / "int8g", tmp_path / "out", **TO)
    assert {p.name for p in tmp_path.iterdir()} == {"source", "int8", "gpt2", "int8g"}


@pytest.mark.skipif(
    importlib.util.find_spec("compressed_tensors") is None, reason="no compressed-tensors"
)
@pytest.mark.parametrize("columns", [False, True], ids=["exact", "folded"])
def test_transformers_opens_it(tmp_path: Path, columns: bool) -> None:
    transformers: Any = pytest.importorskip("transformers")
    write_checkpoint(tmp_path / "source")
    int8conv.convert_checkpoint(
        tmp_path / "source", tmp_path / "int8", outliers="calibrated" if columns else "none"
    )
    int8conv.export_checkpoint(tmp_path / "int8", tmp_path / "out", fold_outliers=columns, **TO)
    edit_config(tmp_path / "out", torch_dtype="float32")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out",
        quantization_config=transformers.CompressedTensorsConfig(run_compressed=False),
    )
    for name, value in dequantized(tmp_path / "out").items():
        assert torch.equal(model.get_parameter(name), value), name
    ids = torch.arange(24)[None]
    expected = int8conv.load(tmp_path / "int8", mode="w8a16").logits(ids)
    error = model(ids).logits.float() - expected
    assert error.norm() < 0.05 * expected.norm()  # its activations are int8
