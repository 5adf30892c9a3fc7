"""OLMo 2 (arXiv:2501.00656): norms after attention and FFN, and of queries and keys over all heads.

OLMoE (arXiv:2409.02060): norms before attention and FFN, those of queries and keys as well, experts in every layer.
"""

from __future__ import annotations

from ..config import DecoderConfig, Experts, RawConfig
from .family import Family
from .standard import COMPUTED, HEAD_NORMS, NAMES, POST_NORMS, expert_stacks, read_decoder


def read_config(raw: RawConfig) -> DecoderConfig:
    bias = raw.flag("attention_bias", False)
    return read_decoder(
        raw, "olmo2",
        norm_eps=raw.number("rms_norm_eps", 1e-5), norms="after", query_norm="row",
        qkv_bias=bias, out_bias=bias,
    )  # fmt: skip


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
    "olmo2", "model.", {**NAMES, **HEAD_NORMS, **POST_NORMS}, read_config, COMPUTED
)  # fmt: skip
_EXPERTS = {
    "router": "model.layers.{}.mlp.gate",
    "expert_gate": "model.layers.{}.mlp.experts.{}.gate_proj",
    "expert_up": "model.layers.{}.mlp.experts.{}.up_proj",
    "expert_down": "model.layers.{}.mlp.experts.{}.down_proj",
}
OLMOE = Family(
    "olmoe", "model.", {**NAMES, **HEAD_NORMS, **_EXPERTS}, read_olmoe, COMPUTED,
    stacks=expert_stacks("mlp.experts", "mlp.switch_mlp"),
)  # fmt: skip
