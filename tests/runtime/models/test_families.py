"""Every family against transformers: the same logits on the same weights, in source precision and converted, and the same text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

import int8conv
from int8conv.errors import UnsupportedFeatureError
from int8conv.formats.int8.folder import open_converted
from int8conv.runtime.models.architecture import read_architecture
from int8conv.runtime.models.families import FAMILIES

from ..reference import TOLERANCE, dequantized_reference, greedy, logits, reference, token_by_token
from .newer_configs import NEWER

_SIZES: dict[str, Any] = {
    "vocab_size": 101, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 96,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip
_OLD: dict[str, Any] = {
    "vocab_size": 101, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 96, "bos_token_id": 1,
    "eos_token_id": 2, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
}  # fmt: skip
_EXPERTS: dict[str, Any] = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
_BLOOM: dict[str, Any] = {"vocab_size": 101, "hidden_size": 64, "n_layer": 3, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
_FALCON: dict[str, Any] = {
    "vocab_size": 101, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 96, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_SCALED = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 24,
}
_LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 24,
    "short_factor": [1.0, 1.1, 1.3, 1.5, 1.6, 1.7, 1.8, 2.0], "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0],
}  # fmt: skip
_WINDOWS = ["sliding_attention", "full_attention", "sliding_attention"]

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, yarn": ("llama", _SIZES | {"rope_parameters": _SCALED}),
    "llama, dynamic positions": (
        "llama",
        _SIZES | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}
        | {"max_position_embeddings": 24},
    ),
    "mistral": ("mistral", _SIZES | {"sliding_window": None}),
    "mistral, a window, wide heads": ("mistral", _SIZES | {"sliding_window": 9, "head_dim": 24}),
    "qwen2": ("qwen2", _SIZES),
    "qwen2, windows in later layers, tied": (
        "qwen2",
        _SIZES | {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
        | {"tie_word_embeddings": True},
    ),
    "qwen3": ("qwen3", _SIZES | {"head_dim": 16}),
    "qwen3, wide heads, biases": ("qwen3", _SIZES | {"head_dim": 32, "attention_bias": True}),
    "phi": ("phi", _SIZES),
    "phi, other shares": ("phi", _SIZES | {"partial_rotary_factor": 0.25, "num_key_value_heads": 4}),
    "phi3": ("phi3", _SIZES | {"pad_token_id": 0}),
    "phi3, long positions, a window": (
        "phi3", _SIZES | {"pad_token_id": 0, "rope_parameters": _LONG, "sliding_window": 11},
    ),
    "gemma": ("gemma", _SIZES | {"head_dim": 16}),
    "gemma, one key head": ("gemma", _SIZES | {"head_dim": 24, "num_key_value_heads": 1}),
    "gemma2": ("gemma2", _SIZES | {"head_dim": 16, "sliding_window": 8}),
    "gemma2, low caps": (
        "gemma2",
        _SIZES | {"head_dim": 24, "sliding_window": 200, "attn_logit_softcapping": 2.0}
        | {"final_logit_softcapping": 3.0, "query_pre_attn_scalar": 16},
    ),
    "gemma2, no caps": (
        "gemma2",
        _SIZES | {"head_dim": 16, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "gemma3": ("gemma3_text", _SIZES | {"head_dim": 16, "sliding_window": 8, "layer_types": _WINDOWS}),
    "gemma3, scaled": (
        "gemma3_text",
        _SIZES | {"head_dim": 16, "sliding_window": 5, "layer_types": _WINDOWS}
        | {"rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }},
    ),
    "olmo2": ("olmo2", _SIZES),
    "olmoe": (
        "olmoe", _SIZES | {"num_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 40},
    ),
    "granite": ("granite", _SIZES),
    "granite, multipliers": (
        "granite",
        _SIZES | {"embedding_multiplier": 6.0, "residual_multiplier": 0.4, "attention_multiplier": 0.1}
        | {"logits_scaling": 3.0, "attention_bias": True, "mlp_bias": True},
    ),
    "cohere": ("cohere", _SIZES | {"logit_scale": 1.0}),
    "stablelm": ("stablelm", _SIZES),
    "stablelm, parallel, biases": (
        "stablelm", _SIZES | {"use_parallel_residual": True, "use_qkv_bias": True},
    ),
    "starcoder2": ("starcoder2", _SIZES),
    "starcoder2, a window, no biases": ("starcoder2", _SIZES | {"sliding_window": 6, "use_bias": False}),
    "gpt2": ("gpt2", _OLD),
    "gpt2, other widths, scores not scaled": (
        "gpt2", _OLD | {"n_inner": 96, "scale_attn_weights": False, "tie_word_embeddings": False},
    ),
    "gptj": ("gptj", _OLD | {"rotary_dim": 8}),
    "gptj, whole heads": ("gptj", _OLD | {"rotary_dim": 16, "n_inner": 96}),
    "gpt_neox": ("gpt_neox", _SIZES),
    "gpt_neox, in sequence, no biases": (
        "gpt_neox", _SIZES | {"use_parallel_residual": False, "attention_bias": False},
    ),
    "bloom": ("bloom", _BLOOM),
    "bloom, six heads": ("bloom", _BLOOM | {"hidden_size": 96, "n_head": 6}),
    "falcon, one key head": ("falcon", _FALCON),
    "falcon, groups": ("falcon", _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, groups, one norm": (
        "falcon",
        _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "falcon, alibi, in sequence": (
        "falcon", _FALCON | {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    ),
    "mixtral": ("mixtral", _SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": ("qwen2_moe", _SIZES | _EXPERTS | {"shared_expert_intermediate_size": 48}),
    "qwen2_moe, some layers": (
        "qwen2_moe",
        _SIZES | _EXPERTS | {"shared_expert_intermediate_size": 48, "mlp_only_layers": [0]}
        | {"norm_topk_prob": True},
    ),
    "qwen3_moe": ("qwen3_moe", _SIZES | _EXPERTS | {"head_dim": 16}),
    "qwen3_moe, every other layer": (
        "qwen3_moe", _SIZES | _EXPERTS | {"head_dim": 16, "decoder_sparse_step": 2, "norm_topk_prob": True},
    ),
}  # fmt: skip

CONFIGS |= NEWER
_params = pytest.mark.parametrize("name", CONFIGS)


def config_of(name: str) -> PretrainedConfig:
    model_type, options = CONFIGS[name]
    return AutoConfig.for_model(model_type, **options)


def token_ids(batch: int = 2, count: int = 40) -> Tensor:
    return torch.randint(101, (batch, count), generator=torch.Generator().manual_seed(1))


def test_every_family_is_here() -> None:
    assert {model_type for model_type, _ in CONFIGS.values()} | {"opt"} == set(FAMILIES)


@_params
def test_source_and_converted(name: str, tmp_path: Path) -> None:
    """Prefill and token by token; converted, transformers gets the dequantized weights."""
    model = reference(config_of(name), tmp_path / "source", torch.float16)
    ids = token_ids()
    expected = logits(model, ids)
    assert expected.std() > 0.03
    ours = int8conv.load(tmp_path / "source")
    assert (ours.logits(ids) - expected).abs().max() <= TOLERANCE
    if "long" in name or "dynamic" in name:  # frequencies depend on the length at each step there
        ids, expected = ids[:, :20], logits(model, ids[:, :20])
    assert (token_by_token(ours, ids, 9) - expected).abs().max() <= TOLERANCE

    int8conv.convert_checkpoint(tmp_path / "source", tmp_path / "int8")
    assert len(open_converted(tmp_path / "int8").linears) >= 12
    model = dequantized_reference(tmp_path / "source", tmp_path / "int8", tmp_path / "wide")
    converted = int8conv.load(tmp_path / "int8", mode="w8a16")
    expected = logits(model, ids)
    assert (converted.logits(ids) - expected).abs().max() <= TOLERANCE
    assert (token_by_token(converted, ids, 9) - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("name", [name for name in CONFIGS if "," not in name])
def test_greedy_text(name: str, tmp_path: Path) -> None:
    model = reference(config_of(name), tmp_path, torch.float32)
    prompt = token_ids(1, 12)
    model.generation_config.eos_token_id = None
    expected = model.generate(prompt, max_new_tokens=64, do_sample=False, pad_token_id=0)
    ours = int8conv.load(tmp_path)
    assert greedy(ours, prompt[0].tolist(), 64) == expected[0, 12:].tolist()


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("cohere", "use_qk_norm", True),
        ("stablelm", "qk_layernorm", True),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("gemma2", "use_bidirectional_attention", True),
        ("bloom", "apply_residual_connection_post_layernorm", True),
        ("qwen2", "layer_types", ["chunked_attention"] * 3),
        ("mixtral", "num_experts_per_tok", 9),
        ("olmoe", "clip_qkv", 8.0),
        ("gemma4_text", "use_bidirectional_attention", "all"),
        ("gemma4_text", "num_kv_shared_layers", 3),
        ("gemma4_text", "per_layer_config", {"1": {"head_dim": 32}}),
        ("gemma4_text", "per_layer_config", {"1": {"sliding_window": 3}}),
        ("gemma3n_text", "altup_num_inputs", 65),
    ],
)
def test_features_that_are_not_known_are_refused_by_name(
    name: str, key: str, value: object
) -> None:
    config = config_of(name).to_dict() | {key: value}
    if name == "qwen2":
        config["use_sliding_window"] = True
    with pytest.raises(UnsupportedFeatureError, match=key):
        read_architecture(config, ())
