"""Solar Open: experts in every layer, routed as in DeepSeek-V3."""

from __future__ import annotations

from ..config import DecoderConfig
from ..raw_config import RawConfig
from ..rope import read_rope
from .family import Family
from .routed import ROUTED, read_routed
from .standard import COMPUTED, NAMES, expert_stacks


def read_config(raw: RawConfig) -> DecoderConfig:
    raw.ignore("intermediate_size", "first_k_dense_replace", "num_nextn_predict_layers")
    return read_routed(
        raw, "solar_open", sparse=(), shared=raw.integer("n_shared_experts", 1),
        intermediate_size=raw.integer("moe_intermediate_size"), head_dim=raw.integer("head_dim", 128),
        norm_eps=raw.number("rms_norm_eps", 1e-5), rope=read_rope(raw, 1.0, theta=1e6),
        qkv_bias=raw.flag("attention_bias", False),
    )  # fmt: skip


FAMILY = Family(
    "solar_open", "model.", {**NAMES, **ROUTED}, read_config, COMPUTED,
    stacks=expert_stacks("mlp.experts", "mlp.switch_mlp"),
)  # fmt: skip
