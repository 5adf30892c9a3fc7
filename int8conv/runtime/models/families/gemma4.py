"""Gemma 4's text: larger heads in layers without a window, whose values may be their keys; shared keys; embeddings for each layer;
experts beside the FFN. "Unified" models have neither of the last two."""

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
    )  # none in the last
    same, bias = raw.flag("attention_k_eq_v", False), raw.flag("attention_bias", False)
    shared = min(read_count(raw, "num_kv_shared_layers"), layers)
    seen = raw.values.get("use_bidirectional_attention") == "vision"
    raw.fixed("use_bidirectional_attention", "vision" if seen else None)  # never of text
    rope, local_rope = read_layer_ropes(raw, (1e6, 1e4)) or _ROPES
    return read_decoder(
        raw, model_type, tied=raw.flag("tie_word_embeddings", True), head_dim=raw.integer("head_dim", 256), norms="around",
        activation=raw.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh"), query_norm="head", value_norm=True,
        embedding_scale=raw.integer("hidden_size") ** 0.5, attention_scale=1.0, windows=windows, layer_scaled=True,
        logit_softcap=raw.optional_number("final_logit_softcapping"), rope=rope, local_rope=local_rope, qkv_bias=bias,
        heads=read_layer_heads(raw, windows, more=same), out_bias=bias,
        keys_as_values=tuple(same and size is None for size in windows), ffn_sizes=(inner,) * (layers - shared) + (2 * inner,) * shared if raw.flag("use_double_wide_mlp", False) else (),
        key_sources=read_key_sources(raw, windows, shared), **more,
    )  # fmt: skip


def read_gemma4(raw: RawConfig) -> DecoderConfig:
    keys, experts = ("num_experts", "top_k_experts", "moe_intermediate_size"), None
    if raw.flag("enable_moe_block", False):
        count, used, inner = map(raw.integer, keys)
        experts = Experts(count, used, inner, normalised=True, beside_ffn=True)
    raw.ignore(*keys, "expert_intermediate_size")
    return _read(raw, "gemma4_text", layer_input=read_layer_input(raw), experts=experts)


def read_unified(raw: RawConfig) -> DecoderConfig:
    return _read(raw, "gemma4_unified_text")


_SCALED = {"layer_scale": f"{_LAYER}layer_scalar"}
_MORE = {
    **_SCALED, "mlp_inner_norm": f"{_LAYER}post_feedforward_layernorm_1", "experts_norm": f"{_LAYER}pre_feedforward_layernorm_2",
    "experts_post_norm": f"{_LAYER}post_feedforward_layernorm_2", "router": f"{_LAYER}router.proj",
    "router_scale": f"{_LAYER}router.scale", "expert_scale": f"{_LAYER}router.per_expert_scale",
    **{f"expert_{role}": f"{_LAYER}experts.{{}}.{role}_proj" for role in ("gate", "up", "down")},
}  # fmt: skip
_PLAIN = {role: name for role, name in SHARED_NAMES.items() if not role.startswith("input_")} | _SCALED  # fmt: skip
GEMMA4 = Family("gemma4_text", "model.", SHARED_NAMES | _MORE, read_gemma4, COMPUTED, stacks=expert_stacks("experts"))  # fmt: skip
UNIFIED = Family("gemma4_unified_text", "model.", _PLAIN, read_unified, COMPUTED)
