"""Gemma 4's text: what ``gemma4_like`` says; embeddings for each layer; in some sizes, experts beside the FFN."""

from __future__ import annotations

from ..config import DecoderConfig, Experts
from ..raw_config import RawConfig
from .family import Family
from .gemma4_like import SCALED, read_gemma4_like
from .shared_keys import SHARED_NAMES, read_layer_input
from .standard import COMPUTED, expert_stacks

_LAYER = "model.layers.{}."


def read_gemma4(raw: RawConfig) -> DecoderConfig:
    keys, experts = ("num_experts", "top_k_experts", "moe_intermediate_size"), None
    if raw.flag("enable_moe_block", False):
        count, used, inner = map(raw.integer, keys)
        experts = Experts(count, used, inner, normalised=True, beside_ffn=True)
    raw.ignore(*keys, "expert_intermediate_size")
    return read_gemma4_like(raw, "gemma4_text", layer_input=read_layer_input(raw), experts=experts)


_MORE = {
    **SCALED, "mlp_inner_norm": f"{_LAYER}post_feedforward_layernorm_1", "experts_norm": f"{_LAYER}pre_feedforward_layernorm_2",
    "experts_post_norm": f"{_LAYER}post_feedforward_layernorm_2", "router": f"{_LAYER}router.proj",
    "router_scale": f"{_LAYER}router.scale", "expert_scale": f"{_LAYER}router.per_expert_scale",
    **{f"expert_{role}": f"{_LAYER}experts.{{}}.{role}_proj" for role in ("gate", "up", "down")},
}  # fmt: skip
FAMILY = Family("gemma4_text", "model.", SHARED_NAMES | _MORE, read_gemma4, COMPUTED, stacks=expert_stacks("experts"))  # fmt: skip
