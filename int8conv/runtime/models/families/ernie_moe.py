"""ERNIE 4.5 with experts: chosen by softmax and a bias in most layers, beside shared ones; adjacent channels are rotated as pairs."""

from __future__ import annotations

from dataclasses import replace

from ..config import DecoderConfig, Experts
from ..raw_config import RawConfig
from ..rope import read_rope
from .family import Family
from .routed import ROUTED
from .shared_keys import read_count
from .standard import COMPUTED, NAMES, expert_stacks, read_decoder


def read_config(raw: RawConfig) -> DecoderConfig:
    raw.ignore(
        "router_aux_loss_coef", "output_router_logits", "moe_norm_min", "moe_layer_end_index"
    )
    raw.ignore("moe_capacity", "moe_gate", "moe_use_aux_free")
    raw.fixed("use_bias", False)
    layers, inner = raw.integer("num_hidden_layers"), raw.integer("moe_intermediate_size")
    first, every = read_count(raw, "moe_layer_start_index", 1), raw.integer("moe_layer_interval", 1)
    last = raw.values.get("moe_layer_end_index")
    last = layers - 1 if last in (None, -1) or type(last) is not int else last
    experts = Experts(
        count=raw.integer("moe_num_experts", 64),
        used=raw.integer("num_experts_per_tok" if "num_experts_per_tok" in raw.values else "moe_k", 6),
        intermediate_size=inner, normalised=True, shared_size=inner * read_count(raw, "moe_num_shared_experts", 2),
        shared_gated=False, biased=True, bias_row=True,
    )  # fmt: skip
    return read_decoder(
        raw, "ernie4_5_moe", tied=raw.flag("tie_word_embeddings", True), norm_eps=raw.number("rms_norm_eps", 1e-5),
        rope=replace(read_rope(raw, theta=5e5), interleaved=True), experts=experts,
        sparse_layers=tuple((layer + 1) % every == 0 and first <= layer <= last for layer in range(layers)),
    )  # fmt: skip


FAMILY = Family(
    "ernie4_5_moe", "model.",
    {**NAMES, **ROUTED, "router_bias": "model.layers.{}.mlp.moe_statics.e_score_correction_bias"},
    read_config, COMPUTED, stacks=expert_stacks("mlp.experts", "mlp.switch_mlp"),
)  # fmt: skip
