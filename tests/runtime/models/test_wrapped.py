"""Multimodal models used for text, against transformers: as it writes them, and with the names and configs of the hub."""

from __future__ import annotations

import json
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import int8conv
from int8conv.formats.int8.folder import open_converted
from int8conv.runtime.models.generation_config import read_generation_defaults
from int8conv.runtime.models.wrapped import DEFAULTS, WRAPPERS, text_part

from ..reference import (
    TOLERANCE,
    logits,
    put_dequantized_weights,
    reference,
    token_by_token,
)
from .newer_configs import NEWER

_TEXT: dict[str, Any] = {
    "vocab_size": 101, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "head_dim": 16,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 96, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
_QWEN: dict[str, Any] = {
    "depth": 1,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 64,
    "hidden_size": 32,
}
_MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
_LINEAR: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"], "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
_GROWN = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 12, "mscale": 1.0,
    "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip
_OTHER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gemma3": ({"layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4}, _VISION),
    "gemma4": (
        {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4, "num_kv_shared_layers": 2}
        | {"global_head_dim": 32, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 101},
        _VISION | {"num_key_value_heads": 2, "head_dim": 16, "pooling_kernel_size": 2, "position_embedding_size": 64},
    ),
    "gemma4_unified": ({"layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4}, {}),
    "qwen2_vl": ({"rope_parameters": _MROPE}, _QWEN | {"embed_dim": 32, "hidden_size": 64}),
    "qwen2_5_vl": ({"rope_parameters": _MROPE}, _QWEN | {"intermediate_size": 48, "fullatt_block_indexes": [0]}),
    "qwen3_vl": (
        {"rope_parameters": _MROPE}, _QWEN | {"intermediate_size": 48, "deepstack_visual_indexes": [0]},
    ),
    "qwen3_5": (
        _LINEAR | {"rope_parameters": _MROPE | {"partial_rotary_factor": 0.5}},
        _QWEN | {"intermediate_size": 48},
    ),
    "qwen3_5_moe": (
        _LINEAR | {"rope_parameters": _MROPE, "num_experts": 4, "num_experts_per_tok": 2}
        | {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
        _QWEN | {"intermediate_size": 48},
    ),
    "mistral3": ({"model_type": "ministral3", "rope_parameters": _GROWN}, _VISION | {"model_type": "pixtral", "head_dim": 16}),
    "internvl": ({"model_type": "qwen2"}, _VISION | {"image_size": [32, 32], "patch_size": [8, 8]}),
    "llava": ({"model_type": "llama"}, _VISION | {"model_type": "clip_vision_model"}),
    "llava_next": ({"model_type": "mistral"}, _VISION | {"model_type": "clip_vision_model"}),
    "idefics3": ({"model_type": "llama"}, _VISION),
    "smolvlm": ({"model_type": "llama"}, _VISION),
}  # fmt: skip


@pytest.fixture
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Any]:
    """A random model of a type, saved in float16, and the same in float32."""
    torch.manual_seed(0)
    text, vision = deepcopy(_OTHER[request.param])  # transformers writes into them
    more = {"image_token_id": 90, "image_token_index": 90, "vision_feature_layer": -1}
    config = AutoConfig.for_model(
        request.param, text_config=_TEXT | text, vision_config=vision, **more
    )
    model = AutoModelForImageTextToText.from_config(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
        elif "embed" not in name:
            parameter.data *= 4
    model.to(torch.float16).save_pretrained(tmp_path / "source")
    (tmp_path / "source" / "generation_config.json").unlink(missing_ok=True)
    found = AutoModelForImageTextToText.from_pretrained(tmp_path / "source", dtype=torch.float32)
    return tmp_path / "source", found.eval()


@pytest.mark.parametrize("saved", _OTHER, indirect=True)
def test_text_is_that_of_transformers(saved: tuple[Path, Any], tmp_path: Path) -> None:
    """In source precision; converted, transformers gets the dequantized weights. Everything but the text part stays as it is."""
    source, model = saved
    ids = torch.randint(3, 89, (2, 30), generator=torch.Generator().manual_seed(1))
    expected = logits(model, ids)
    assert expected.std() > 0.03
    ours = int8conv.load(source)
    assert (ours.logits(ids) - expected).abs().max() <= TOLERANCE
    assert (token_by_token(ours, ids, 9) - expected).abs().max() <= TOLERANCE
    report = int8conv.convert_checkpoint(source, tmp_path / "int8")
    assert report.notes[0].startswith("a multimodal model: its text part runs")
    linears = open_converted(tmp_path / "int8").linears
    if not model.config.model_type.startswith("qwen3_5"):
        # gemma4: in each of four layers two more for its own embedding, in the last two neither k nor v
        more = {"gemma3": 28, "gemma4_unified": 28, "gemma4": 9 * 4 - 2 * 2}
        assert len(linears) == more.get(model.config.model_type, 7 * 3)
    assert all(".layers." in path and "vis" not in path for path in linears)
    kept, stored = load_file(source / "model.safetensors"), {}
    for file in (tmp_path / "int8").glob("*.safetensors"):
        stored |= load_file(file)
    other = [name for name in kept if "vis" in name or "projector" in name or "connector" in name]
    assert other
    assert all(torch.equal(stored[name], kept[name]) for name in other)
    put_dequantized_weights(_Renamed(model, linears), tmp_path / "int8")
    converted = int8conv.load(tmp_path / "int8", mode="w8a16").logits(ids)
    assert (converted - logits(model, ids)).abs().max() <= TOLERANCE


class _Part:
    """A matrix of a stack of experts that can be replaced like a parameter."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix = matrix

    def __setattr__(self, name: str, value: torch.Tensor) -> None:
        if name == "data":
            self.matrix.copy_(value)
        else:
            super().__setattr__(name, value)


class _Renamed:
    """A model's parameters under the names of a checkpoint's linears."""

    def __init__(self, model: Any, linears: Iterable[str]) -> None:
        parameters = dict(model.named_parameters())
        names = {n.partition("layers.")[2]: n for n in parameters if "vis" not in n}
        self.found: dict[str, Any] = {}
        for path in linears:
            inner = path.partition("layers.")[2]
            parent, _, rest = inner.partition(".experts.")
            if not rest:
                self.found[f"{path}.weight"] = parameters[names[f"{inner}.weight"]]
                continue
            expert, _, role = rest.partition(".")
            stack = "down_proj" if role == "down_proj" else "gate_up_proj"
            matrix = parameters[names[f"{parent}.experts.{stack}"]].data[int(expert)]
            if role != "down_proj":
                matrix = matrix.chunk(2)[role == "up_proj"]
            self.found[f"{path}.weight"] = _Part(matrix)

    def named_parameters(self) -> Any:
        return self.found.items()


@pytest.mark.parametrize(("saved", "prefix"), [("llava", "model.language_model."), ("gemma3", "language_model.model.")], indirect=["saved"])  # fmt: skip
def test_other_names_of_the_same_tensors(saved: tuple[Path, Any], prefix: str) -> None:
    """transformers 4 and 5 write different prefixes; both are on the hub."""
    source, model = saved
    file = source / "model.safetensors"
    tensors = load_file(file)
    before = next(name.partition("embed_tokens")[0] for name in tensors if "embed_tokens" in name)
    save_file({name.replace(before, prefix): t for name, t in tensors.items()}, file)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert (int8conv.load(source).logits(ids) - logits(model, ids)).abs().max() <= TOLERANCE


def test_gemma3n_in_its_wrapper(tmp_path: Path) -> None:
    """Whose vision part transformers only builds with another package: the names and the config of the hub around its text part."""
    assert {*_OTHER, "gemma3n"} == set(WRAPPERS)
    model_type, options = NEWER["gemma3n_text"]
    model = reference(AutoConfig.for_model(model_type, **options), tmp_path, torch.float32)
    file = tmp_path / "model.safetensors"
    tensors = {name.replace("model.", "model.language_model.", 1): t for name, t in load_file(file).items()}  # fmt: skip
    tower = {"model.vision_tower.timm_model.blocks.0.weight": torch.ones(64, 64)}
    save_file(tensors | tower, file)
    text = json.loads((tmp_path / "config.json").read_text())
    config = {"model_type": "gemma3n", "text_config": text, "vision_config": {}, "audio_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ids = torch.tensor([[5, 6, 7, 8, 95]])
    assert (int8conv.load(tmp_path).logits(ids) - logits(model, ids)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("saved", ["qwen2_5_vl"], indirect=True)
def test_a_config_of_one_level_and_three_axes(saved: tuple[Path, Any]) -> None:
    """Qwen2-VL and Qwen2.5-VL as they were released."""
    source, model = saved
    config = json.loads((source / "config.json").read_text())
    text = config.pop("text_config")
    text["rope_scaling"] = {"type": "mrope", "mrope_section": [2, 3, 3]}
    text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
    ids = torch.tensor([[5, 6, 7, 8]])
    (source / "config.json").write_text(json.dumps(text | config))
    assert (int8conv.load(source).logits(ids) - logits(model, ids)).abs().max() <= TOLERANCE
    assert read_generation_defaults(source, {"model_type": "qwen2_vl", "text_config": {"eos_token_id": 7}}).end_tokens == {7}  # fmt: skip


@pytest.mark.parametrize("model_type", DEFAULTS)
def test_keys_left_out_have_the_values_of_transformers(model_type: str) -> None:
    reference = CONFIG_MAPPING[model_type]().to_dict()
    found = text_part({"model_type": "llava", "text_config": {"model_type": model_type}})
    assert {key: reference[key] for key in DEFAULTS[model_type]} == DEFAULTS[model_type]
    assert DEFAULTS[model_type].items() <= found.items()
    assert text_part({"model_type": "llama", "text_config": {}}) == {"model_type": "llama", "text_config": {}}  # fmt: skip
