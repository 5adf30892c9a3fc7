"""LFM2-MoE: LFM2 with experts behind the first layers, routed by sigmoids and a bias."""

from __future__ import annotations

from ..config import DecoderConfig, Experts
from ..raw_config import RawConfig
from .family import Family
from .lfm2 import FFN, LFM2_NAMES, LINEARS, read_convolved, read_lfm2
from .standard import COMPUTED, expert_stacks


def read_config(raw: RawConfig) -> DecoderConfig:
    dense, layers = raw.values.get("num_dense_layers", 2), range(raw.integer("num_hidden_layers"))
    raw.ignore("num_dense_layers", "output_router_logits")
    if type(dense) is not int:
        raise raw.unsupported("num_dense_layers", dense, "an integer")
    experts = Experts(
        count=raw.integer("num_experts", 32),
        used=raw.integer("num_experts_per_tok", 4),
        intermediate_size=raw.integer("moe_intermediate_size"),
        normalised=raw.flag("norm_topk_prob", True),
        scoring="sigmoid",
        biased=raw.flag("use_expert_bias", True),
        scale=raw.number("routed_scaling_factor", 1.0),
    )
    sparse = tuple(layer >= dense for layer in layers)
    return read_lfm2(raw, "lfm2_moe", read_convolved(raw), experts=experts, sparse_layers=sparse)


_EXPERTS = {
    "router": f"{FFN}gate",
    "router_bias": f"{FFN}expert_bias",
    **{f"expert_{role}": f"{FFN}experts.{{}}.{name}" for role, name in LINEARS},
}
_STACKS = expert_stacks("feed_forward.experts")
FAMILY = Family(
    "lfm2_moe", "model.", {**LFM2_NAMES, **_EXPERTS}, read_config, COMPUTED, stacks=_STACKS
)
