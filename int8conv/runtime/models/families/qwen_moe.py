"""Qwen2 and Qwen3 with small experts in all or some layers; Qwen2 also has a shared one."""

from __future__ import annotations

from typing import Any

from ..config import DecoderConfig, Experts
from ..raw_config import RawConfig
from .family import Family
from .qwen_windows import read_qwen
from .standard import COMPUTED, EXPERT_NAMES, HEAD_NORMS, NAMES, expert_stacks

EXPERTS = {
    **EXPERT_NAMES,
    "shared_gate": "model.layers.{}.mlp.shared_expert.gate_proj",
    "shared_up": "model.layers.{}.mlp.shared_expert.up_proj",
    "shared_down": "model.layers.{}.mlp.shared_expert.down_proj",
    "shared_router": "model.layers.{}.mlp.shared_expert_gate",
}


def _sparse(raw: RawConfig, model_type: str, shared: bool, **more: Any) -> DecoderConfig:
    step = raw.integer("decoder_sparse_step", 1)
    dense = set(raw.integers("mlp_only_layers"))
    layers = range(raw.integer("num_hidden_layers"))
    raw.ignore("router_aux_loss_coef", "output_router_logits")
    experts = Experts(
        count=raw.integer("num_experts" if "num_experts" in raw.values else "num_local_experts"),
        used=raw.integer("num_experts_per_tok"),
        intermediate_size=raw.integer("moe_intermediate_size"),
        normalised=raw.flag("norm_topk_prob", False),
        shared_size=raw.integer("shared_expert_intermediate_size") if shared else 0,
    )
    sparse = tuple(layer not in dense and (layer + 1) % step == 0 for layer in layers)
    return read_qwen(raw, model_type, experts=experts, sparse_layers=sparse, **more)


def read_qwen2_moe(raw: RawConfig) -> DecoderConfig:
    return _sparse(raw, "qwen2_moe", shared=True, qkv_bias=raw.flag("qkv_bias", True))


def read_qwen3_moe(raw: RawConfig) -> DecoderConfig:
    bias = raw.flag("attention_bias", False)
    return _sparse(
        raw, "qwen3_moe", shared=False, query_norm="head", qkv_bias=bias, out_bias=bias
    )  # fmt: skip


_STACKS = expert_stacks("mlp.experts", "mlp.switch_mlp")
QWEN2_MOE = Family(
    "qwen2_moe", "model.", {**NAMES, **EXPERTS}, read_qwen2_moe, COMPUTED, stacks=_STACKS
)
QWEN3_MOE = Family(
    "qwen3_moe",
    "model.",
    {**NAMES, **HEAD_NORMS, **EXPERTS},
    read_qwen3_moe,
    COMPUTED,
    stacks=_STACKS,
)
