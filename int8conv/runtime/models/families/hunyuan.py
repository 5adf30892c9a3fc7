"""HunYuan (arXiv:2411.02265): norms of heads after the rotation; in the mixture of experts, a shared expert without a gate."""

from __future__ import annotations

from typing import Any

from ..config import DecoderConfig, Experts
from ..raw_config import RawConfig
from .family import Family
from .standard import COMPUTED, NAMES, expert_stacks, read_decoder

_NORMS = {
    "q_norm": "model.layers.{}.self_attn.query_layernorm",
    "k_norm": "model.layers.{}.self_attn.key_layernorm",
}
_EXPERTS = {
    "router": "model.layers.{}.mlp.gate.wg",
    "expert_gate": "model.layers.{}.mlp.experts.{}.gate_proj",
    "expert_up": "model.layers.{}.mlp.experts.{}.up_proj",
    "expert_down": "model.layers.{}.mlp.experts.{}.down_proj",
    "shared_gate": "model.layers.{}.mlp.shared_mlp.gate_proj",
    "shared_up": "model.layers.{}.mlp.shared_mlp.up_proj",
    "shared_down": "model.layers.{}.mlp.shared_mlp.down_proj",
}


def _read(raw: RawConfig, model_type: str, **more: Any) -> DecoderConfig:
    raw.ignore(
        "eod_token_id", "sep_token_id", "mask_init_id", "im_start_id", "pad_id", "org_vocab_size"
    )
    bias = raw.flag("attention_bias", False)
    return read_decoder(
        raw, model_type, norm_eps=raw.number("rms_norm_eps", 1e-5), query_norm="head",
        norm_rotated=True, qkv_bias=bias, out_bias=bias, **more,
    )  # fmt: skip


def read_dense(raw: RawConfig) -> DecoderConfig:
    return _read(raw, "hunyuan_v1_dense")


def read_moe(raw: RawConfig) -> DecoderConfig:
    raw.ignore("output_router_logits")
    inner = raw.integer("intermediate_size")
    experts = Experts(
        raw.integer("num_experts"), raw.integer("moe_topk"), inner,
        normalised=True, shared_size=inner, shared_gated=False,
    )  # fmt: skip
    return _read(raw, "hunyuan_v1_moe", experts=experts)


DENSE = Family("hunyuan_v1_dense", "model.", {**NAMES, **_NORMS}, read_dense, COMPUTED)
MOE = Family(
    "hunyuan_v1_moe", "model.", {**NAMES, **_NORMS, **_EXPERTS}, read_moe, COMPUTED,
    stacks=expert_stacks("mlp.experts"),
)  # fmt: skip
