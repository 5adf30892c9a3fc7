"""``quantize_model``: what ``convert`` makes of the saved checkpoint, made in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import int8conv
from int8conv.errors import (
    ArgumentError,
    CalibrationError,
    HalfOverflowError,
    NonFiniteWeightError,
    UnsupportedModelError,
)
from int8conv.formats.int8.verify import verify
from int8conv.hf import Int8convLinear, quantize_model
from int8conv.hf.linear import int8_linears

from .models import convert, load, logits, token_ids, write_source


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_it_makes_the_codes_of_a_conversion(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = convert(name, tmp_path, outliers="none")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "source", dtype=dtype)
    assert quantize_model(model) is model
    expected = load(folder)
    found, wanted = int8_linears(model), int8_linears(expected)
    assert found.keys() == wanted.keys()
    for path, linear in wanted.items():
        assert (found[path].conv1d, found[path].threshold) == (linear.conv1d, None)
        for kind, tensor in linear.state_dict().items():
            assert torch.equal(found[path].state_dict()[kind].to(tensor.dtype), tensor), (
                path,
                kind,
            )
    if dtype == torch.float32:
        assert torch.equal(logits(model, token_ids()), logits(expected, token_ids()))


def test_it_calibrates_is_saved_and_becomes_a_converted_folder(tmp_path: Path) -> None:
    source = load(write_source("llama", tmp_path / "source"))
    with torch.no_grad():
        for layer in source.model.layers:  # two outlier channels, undone by the linears
            layer.input_layernorm.weight[[5, 40]] *= 50
            for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                linear.weight[:, [5, 40]] /= 50
    before = logits(source, token_ids())
    model = quantize_model(source, token_ids(4, 32), keep=[r"layers\.1\.mlp\.down_proj$"])
    assert isinstance(model.model.layers[1].mlp.down_proj, torch.nn.Linear)
    assert not isinstance(model.model.layers[1].mlp.down_proj, Int8convLinear)
    attention = model.model.layers[0].self_attn
    for linear in (attention.q_proj, attention.k_proj):
        assert {5, 40} <= set(linear.outlier_index.tolist())
        assert linear.threshold == attention.v_proj.threshold
        assert linear.threshold is not None
    groups = model.config.quantization_config.groups
    assert [len(group["linears"]) for group in groups] == [3, 1, 2, 1, 3, 1, 2]
    int8conv.hf.set_mode(model, "w8a16")
    found = logits(model, token_ids())
    assert (found - before).square().mean().sqrt() < 0.02 * before.std()
    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    int8conv.hf.set_mode(again, "w8a16")
    assert torch.equal(logits(again, token_ids()), found)
    int8conv.adopt(tmp_path / "saved", tmp_path / "out")
    verify(tmp_path / "out")
    own = int8conv.load(tmp_path / "out", mode="w8a16").logits(token_ids())
    assert (own - found).abs().max() < 0.01  # the head was rounded to 16 bits again


def test_what_cannot_be_quantized(tmp_path: Path) -> None:
    model = load(write_source("llama", tmp_path / "source"))
    q = model.model.layers[0].self_attn.q_proj
    with pytest.raises(UnsupportedModelError, match="no linear"):
        quantize_model(model, keep=["."])
    with pytest.raises(ArgumentError, match="mode"):
        quantize_model(model, mode="w4a4")  # type: ignore[arg-type]
    with torch.no_grad():
        q.weight[3, 7] = float("nan")
        with pytest.raises(NonFiniteWeightError, match=r"q_proj.weight': NaN or infinity in row 3"):
            quantize_model(model)
        q.weight[3, 7] = 1e6
        model.model.layers[0].input_layernorm.weight[7] = 1e6
        with pytest.raises(HalfOverflowError, match="does not fit F16"):
            quantize_model(model, token_ids())
    other = load(tmp_path / "source")
    with torch.no_grad():
        other.model.layers[1].input_layernorm.weight[3] = float("inf")
    with pytest.raises(CalibrationError, match="channel 3"):
        quantize_model(other, token_ids())
    fine = quantize_model(load(tmp_path / "source"))
    with pytest.raises(ArgumentError, match="already quantized"):
        quantize_model(fine)
