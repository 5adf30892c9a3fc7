"""Mellum 2: Qwen3's mixture of experts (arXiv:2505.09388) with windows, and a rotary base of their own, in some layers."""

from __future__ import annotations

from ..config import DecoderConfig, Experts
from ..raw_config import RawConfig
from ..rope import read_layer_ropes, read_rope
from .family import Family
from .qwen_moe import QWEN3_MOE
from .routed import read_first_dense
from .standard import COMPUTED, read_decoder, read_windows


def read_config(raw: RawConfig) -> DecoderConfig:
    raw.ignore("router_aux_loss_coef", "output_router_logits", "num_nextn_predict_layers", "mtp_layer_types", "mtp_mlp_layer_types")  # fmt: skip
    bias = raw.flag("attention_bias", False)
    ropes = read_layer_ropes(raw, (5e5, 1e4)) or (read_rope(raw, theta=5e5), None)
    experts = Experts(
        raw.integer("num_local_experts" if "num_local_experts" in raw.values else "num_experts", 64),
        raw.integer("num_experts_per_tok", 8), raw.integer("moe_intermediate_size"),
        normalised=raw.flag("norm_topk_prob", True),
    )  # fmt: skip
    windows = read_windows(raw, 1024) if raw.values.get("layer_types") is not None else ()
    raw.ignore("sliding_window")
    return read_decoder(
        raw, "mellum", query_norm="head", head_dim=raw.integer("head_dim", 128), experts=experts, windows=windows,
        sparse_layers=read_first_dense(raw, 0), rope=ropes[0], local_rope=ropes[1], qkv_bias=bias, out_bias=bias,
    )  # fmt: skip


FAMILY = Family("mellum", "model.", QWEN3_MOE.names, read_config, COMPUTED, stacks=QWEN3_MOE.stacks)
