"""OLMoE (arXiv:2409.02060): norms before attention and FFN, those of queries and keys as well, experts in every layer."""

from __future__ import annotations

from ..config import DecoderConfig, Experts
from ..raw_config import RawConfig
from .family import Family
from .standard import COMPUTED, EXPERT_NAMES, HEAD_NORMS, NAMES, expert_stacks, read_decoder


def read_olmoe(raw: RawConfig) -> DecoderConfig:
    bias = raw.flag("attention_bias", False)
    raw.fixed("clip_qkv", None)
    raw.ignore("router_aux_loss_coef", "output_router_logits")
    experts = Experts(
        count=raw.integer("num_experts", 64),
        used=raw.integer("num_experts_per_tok", 8),
        intermediate_size=raw.integer("intermediate_size"),
        normalised=raw.flag("norm_topk_prob", False),
    )
    return read_decoder(
        raw, "olmoe",
        norm_eps=raw.number("rms_norm_eps", 1e-5), query_norm="row", experts=experts,
        qkv_bias=bias, out_bias=bias,
    )  # fmt: skip


FAMILY = Family(
    "olmoe", "model.", {**NAMES, **HEAD_NORMS, **EXPERT_NAMES}, read_olmoe, COMPUTED,
    stacks=expert_stacks("mlp.experts", "mlp.switch_mlp"),
)  # fmt: skip
