"""OLMo 2 (arXiv:2501.00656): norms after attention and FFN, and of queries and keys over all heads.

OLMo 3: OLMo 2 with a window in three of four layers, which have their own rotary embedding.

OLMoE (arXiv:2409.02060): norms before attention and FFN, those of queries and keys as well, experts in every layer.
"""

from __future__ import annotations

from typing import Any

from ..config import DecoderConfig, Experts, Rope
from ..raw_config import RawConfig
from ..rope import read_layer_ropes, read_rope
from .family import Family
from .standard import (
    COMPUTED,
    HEAD_NORMS,
    NAMES,
    POST_NORMS,
    expert_stacks,
    read_decoder,
    read_windows,
)


def _read(raw: RawConfig, model_type: str, **more: Any) -> DecoderConfig:
    bias = raw.flag("attention_bias", False)
    return read_decoder(
        raw, model_type,
        norm_eps=raw.number("rms_norm_eps", 1e-5), norms="after", query_norm="row",
        qkv_bias=bias, out_bias=bias, **more,
    )  # fmt: skip


def read_olmo2(raw: RawConfig) -> DecoderConfig:
    return _read(raw, "olmo2")


def read_olmo3(raw: RawConfig) -> DecoderConfig:
    ropes = read_layer_ropes(raw, (5e5, 5e5))
    if ropes is None:  # only layers without a window are scaled for long contexts
        rope = read_rope(raw, theta=5e5)
        ropes = rope, Rope(rope.theta)
    windows = read_windows(raw, 4096, every=4)
    return _read(raw, "olmo3", windows=windows, rope=ropes[0], local_rope=ropes[1])


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


_AFTER = {**NAMES, **HEAD_NORMS, **POST_NORMS}
OLMO2 = Family("olmo2", "model.", _AFTER, read_olmo2, COMPUTED)
OLMO3 = Family("olmo3", "model.", _AFTER, read_olmo3, COMPUTED)
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
