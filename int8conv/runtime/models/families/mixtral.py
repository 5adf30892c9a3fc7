"""Mixtral (arXiv:2401.04088): Mistral with a mixture of experts in every layer."""

from __future__ import annotations

from ..config import DecoderConfig, Experts
from ..raw_config import RawConfig
from .family import Family
from .standard import COMPUTED, NAMES, expert_stacks, read_decoder, read_windows


def read_config(raw: RawConfig) -> DecoderConfig:
    raw.ignore("router_aux_loss_coef", "output_router_logits", "router_jitter_noise")
    experts = Experts(
        count=raw.integer("num_local_experts", 8),
        used=raw.integer("num_experts_per_tok", 2),
        intermediate_size=raw.integer("intermediate_size"),
        normalised=True,
    )
    return read_decoder(raw, "mixtral", windows=read_windows(raw), experts=experts)


FAMILY = Family(
    "mixtral",
    "model.",
    {
        **NAMES,
        "router": "model.layers.{}.block_sparse_moe.gate",
        "expert_gate": "model.layers.{}.block_sparse_moe.experts.{}.w1",
        "expert_up": "model.layers.{}.block_sparse_moe.experts.{}.w3",
        "expert_down": "model.layers.{}.block_sparse_moe.experts.{}.w2",
    },
    read_config,
    COMPUTED,
    stacks=expert_stacks("block_sparse_moe.experts", "mlp.experts", "block_sparse_moe.switch_mlp"),
    aliases={"model.layers.{}.mlp.gate": ("router",)},
)
