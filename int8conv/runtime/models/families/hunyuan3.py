"""Hunyuan 3: norms of queries and keys; experts chosen by sigmoids and a bias, beside a shared one, in all layers but the first."""

from __future__ import annotations

from ..config import DecoderConfig, Experts
from ..raw_config import RawConfig
from ..rope import read_rope
from .family import Family
from .routed import ROUTED, read_first_dense
from .standard import COMPUTED, HEAD_NORMS, NAMES, expert_stacks, read_decoder

_MOE = "model.layers.{}.mlp."


def read_config(raw: RawConfig) -> DecoderConfig:
    raw.ignore("output_router_logits", "enable_moe_fp32_combine", "num_nextn_predict_layers", "enable_lm_head_fp32")  # fmt: skip
    inner, bias = raw.integer("moe_intermediate_size"), raw.flag("attention_bias", False)
    experts = Experts(
        raw.integer("num_experts", 192), raw.integer("num_experts_per_tok", 8), inner, normalised=True,
        shared_size=inner * raw.integer("num_shared_experts", 1), shared_gated=False, scoring="sigmoid", biased=True,
        scale=raw.number("router_scaling_factor", 2.826),
    )  # fmt: skip
    return read_decoder(
        raw, "hy_v3", query_norm="head", head_dim=raw.integer("head_dim", 128), norm_eps=raw.number("rms_norm_eps", 1e-5),
        rope=read_rope(raw, theta=11158840.0), experts=experts, sparse_layers=read_first_dense(raw, 1), qkv_bias=bias,
        out_bias=bias, mlp_bias=raw.flag("mlp_bias", False),
    )  # fmt: skip


_SHARED = {f"shared_{role}": f"{_MOE}shared_mlp.{role}_proj" for role in ("gate", "up", "down")}
FAMILY = Family(
    "hy_v3", "model.",
    {**NAMES, **HEAD_NORMS, **ROUTED, **_SHARED, "router": f"{_MOE}router.gate", "router_bias": f"{_MOE}expert_bias"},
    read_config, COMPUTED, stacks=expert_stacks("mlp.experts", "mlp.switch_mlp"),
)  # fmt: skip
