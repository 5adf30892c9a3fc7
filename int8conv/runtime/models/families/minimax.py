"""MiniMax-M2: norms of queries and keys over all heads, experts routed by sigmoids and a bias in every layer."""

from __future__ import annotations

from dataclasses import replace

from ..config import DecoderConfig, Experts, Rope
from ..raw_config import RawConfig
from ..rope import read_rope
from .family import Family
from .standard import COMPUTED, HEAD_NORMS, NAMES, expert_stacks, read_decoder

_MOE = "model.layers.{}.block_sparse_moe."


def _rope(raw: RawConfig, head_dim: int) -> Rope:
    """``rotary_dim`` of releases is the number of rotated channels."""
    rope, rotated = read_rope(raw, 1.0, theta=5e6), raw.optional_integer("rotary_dim")
    if rotated is None or rope.rotary_fraction != 1:
        return rope
    return replace(rope, rotary_fraction=raw.positive("rotary_dim", rotated / head_dim, most=1.0))


def read_config(raw: RawConfig) -> DecoderConfig:
    raw.ignore("output_router_logits", "router_aux_loss_coef", "router_jitter_noise", "use_qk_norm")
    raw.ignore("use_mtp", "num_mtp_modules", "mtp_transformer_layers", "attn_type_list")
    raw.fixed("qk_norm_type", "per_layer")
    raw.fixed("scoring_func", "sigmoid")
    raw.fixed("use_routing_bias", True)
    raw.fixed("shared_intermediate_size", 0)
    inner, size = raw.integer("intermediate_size"), raw.integer("head_dim", 128)
    experts = Experts(
        raw.integer("num_local_experts"), raw.integer("num_experts_per_tok"), inner,
        normalised=True, scoring="sigmoid", biased=True,
    )  # fmt: skip
    return read_decoder(
        raw, "minimax_m2", head_dim=size, query_norm="row", experts=experts, rope=_rope(raw, size)
    )


FAMILY = Family(
    "minimax_m2",
    "model.",
    {
        **NAMES,
        **HEAD_NORMS,
        "router": f"{_MOE}gate",
        "router_bias": f"{_MOE}e_score_correction_bias",
        "expert_gate": f"{_MOE}experts.{{}}.w1",
        "expert_up": f"{_MOE}experts.{{}}.w3",
        "expert_down": f"{_MOE}experts.{{}}.w2",
    },
    read_config,
    COMPUTED,
    stacks=expert_stacks("block_sparse_moe.experts", "mlp.experts"),
    aliases={"model.layers.{}.mlp.gate": ("router",)},
)
