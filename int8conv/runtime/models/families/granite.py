"""Granite 3: Llama with multipliers for embeddings, residuals, scores and logits; its mixtures of experts are stored as stacks."""

from __future__ import annotations

from typing import Any

from ..config import DecoderConfig, Experts
from ..raw_config import RawConfig
from .family import Family
from .standard import COMPUTED, NAMES, expert_stacks, read_decoder

_MOE = "model.layers.{}.block_sparse_moe."


def read_granite(raw: RawConfig, model_type: str, **more: Any) -> DecoderConfig:  # fields of it
    bias = raw.flag("attention_bias", False)
    return read_decoder(
        raw, model_type,
        qkv_bias=bias, out_bias=bias,
        embedding_scale=raw.number("embedding_multiplier", 1.0),
        residual_scale=raw.number("residual_multiplier", 1.0),
        attention_scale=raw.number("attention_multiplier", 1.0),
        logit_scale=1 / raw.number("logits_scaling", 1.0), **more,
    )  # fmt: skip


def read_dense(raw: RawConfig) -> DecoderConfig:
    return read_granite(raw, "granite", mlp_bias=raw.flag("mlp_bias", False))


def read_moe(raw: RawConfig) -> DecoderConfig:
    raw.ignore("output_router_logits", "router_aux_loss_coef")
    experts = Experts(
        count=raw.integer("num_local_experts", 8),
        used=raw.integer("num_experts_per_tok", 2),
        intermediate_size=raw.integer("intermediate_size"),
        normalised=True,
    )
    return read_granite(raw, "granitemoe", experts=experts)


_EXPERTS = {
    "router": f"{_MOE}router.layer",
    **{f"expert_{role}": f"{_MOE}experts.{{}}.{role}_proj" for role in ("gate", "up", "down")},
}
GRANITE = Family("granite", "model.", NAMES, read_dense, COMPUTED)
GRANITEMOE = Family(
    "granitemoe", "model.", {**NAMES, **_EXPERTS}, read_moe, COMPUTED,
    stacks={
        f"{_MOE}input_linear": ("gate", "up"), f"{_MOE}output_linear": ("down",),
        **expert_stacks("block_sparse_moe.experts"),
    },
)  # fmt: skip
