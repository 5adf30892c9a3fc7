"""Gemma 4's text part: larger heads in layers without a window, whose values may be their keys; shared keys; embeddings for each layer;
experts beside the FFN. "Unified" models have neither of the last two.
"""

from __future__ import annotations

from typing import Any

from ..config import ACTIVATIONS, DecoderConfig, Experts, Rope
from ..raw_config import RawConfig
from ..rope import read_layer_ropes
from .family import Family
from .layer_heads import read_layer_heads
from .shared_keys import SHARED_NAMES, read_count, read_key_sources, read_layer_input
from .standard import COMPUTED, expert_stacks, read_decoder, read_windows

_ROPES = Rope(1e6, "proportional", rotary_fraction=0.25), Rope(1e4)
_LAYER = "model.layers.{}."


def _read(raw: RawConfig, model_type: str, **more: Any) -> DecoderConfig:  # fields of it
    layers, inner = raw.integer("num_hidden_layers"), raw.integer("intermediate_size")
    windows = (
        *(read_windows(raw, 512, every=6) or (None,) * layers)[:-1],
        None,
    )  # the last one never has one
    same, shared = (
        raw.flag("attention_k_eq_v", False),
        min(read_count(raw, "num_kv_shared_layers"), layers),
    )
    sizes = (inner,) * (layers - shared) + (2 * inner,) * shared
    bias = raw.flag("attention_bias", False)
    if raw.values.get("use_bidirectional_attention") == "vision":  # text is causal all the same
        raw.ignore("use_bidirectional_attention")
    else:
        raw.fixed("use_bidirectional_attention", None)
    rope, local_rope = read_layer_ropes(raw, (1e6, 1e4)) or _ROPES
    return read_decoder(
        raw, model_type, tied=raw.flag("tie_word_embeddings", True), head_dim=raw.integer("head_dim", 256), norms="around",
        activation=raw.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh"), query_norm="head", value_norm=True,
        embedding_scale=raw.integer("hidden_size") ** 0.5, attention_scale=1.0, windows=windows, layer_scaled=True,
        logit_softcap=raw.optional_number("final_logit_softcapping"), rope=rope, local_rope=local_rope, qkv_bias=bias,
        heads=read_layer_heads(raw, windows, more=same), out_bias=bias,
        keys_as_values=tuple(same and size is None for size in windows), ffn_sizes=sizes if raw.flag("use_double_wide_mlp", False) else (),
        key_sources=read_key_sources(raw, windows, shared), **more,
    )  # fmt: skip


def read_gemma4(raw: RawConfig) -> DecoderConfig:
    experts = None
    if raw.flag("enable_moe_block", False):
        count, used, inner = (raw.integer(key) for key in ("num_experts", "top_k_experts", "moe_intermediate_size"))  # fmt: skip
        experts = Experts(count, used, inner, normalised=True, beside_ffn=True)
    raw.ignore("num_experts", "top_k_experts", "moe_intermediate_size", "expert_intermediate_size")
    return _read(raw, "gemma4_text", layer_input=read_layer_input(raw), experts=experts)  # fmt: skip


def read_unified(raw: RawConfig) -> DecoderConfig:
    return _read(raw, "gemma4_unified_text")


_NORMS = {"mlp_inner_norm": "post_feedforward_layernorm_1", "experts_norm": "pre_feedforward_layernorm_2", "experts_post_norm": "post_feedforward_layernorm_2"}  # fmt: skip
_ROUTER = {"router": "proj", "router_scale": "scale", "expert_scale": "per_expert_scale"}
_EXPERTS = {f"expert_{role}": f"{_LAYER}experts.{{}}.{role}_proj" for role in ("gate", "up", "down")}  # fmt: skip
_MORE = {role: _LAYER + name for role, name in _NORMS.items()} | _EXPERTS | {role: f"{_LAYER}router.{name}" for role, name in _ROUTER.items()}  # fmt: skip
_SCALED = {"layer_scale": f"{_LAYER}layer_scalar"}
GEMMA4 = Family("gemma4_text", "model.", SHARED_NAMES | _SCALED | _MORE, read_gemma4, COMPUTED, stacks=expert_stacks("experts"))  # fmt: skip
_PLAIN = {role: name for role, name in SHARED_NAMES.items() if not role.startswith("input_")}
UNIFIED = Family("gemma4_unified_text", "model.", _PLAIN | _SCALED, read_unified, COMPUTED)
