"""DeepSeek-V2 (arXiv:2405.04434): latent attention, experts chosen by softmax, in groups; V3 (arXiv:2412.19437): by sigmoids and a bias.

Kimi K2 (arXiv:2507.20534) is a V3 of other sizes. V3.2 (arXiv:2512.02556) is a V3 whose indexer lets a token attend to ``index_topk``
positions: up to that many it is V3 exactly, and longer contexts are refused.
"""

from __future__ import annotations

from dataclasses import replace

from ..config import DecoderConfig, Experts
from ..raw_config import RawConfig
from .family import Family
from .latent import LATENT_NAMES, read_latent
from .routed import ROUTED, read_first_dense, read_routed
from .standard import COMPUTED, expert_stacks, read_decoder


def read_v2(raw: RawConfig) -> DecoderConfig:
    raw.ignore("output_router_logits", "aux_loss_alpha", "seq_aux", "ep_size")
    for key, value in (("norm_topk_prob", False), ("scoring_func", "softmax"), ("moe_layer_freq", 1)):  # fmt: skip
        raw.fixed(key, value)
    grouped = raw.choice("topk_method", {"greedy": False, "group_limited_greedy": True}, "greedy")
    inner = raw.integer("moe_intermediate_size")
    groups, used = (raw.optional_integer(key) or 1 for key in ("n_group", "topk_group"))
    experts = Experts(
        count=raw.integer("n_routed_experts"),
        used=raw.integer("num_experts_per_tok"),
        intermediate_size=inner,
        normalised=False,
        shared_size=inner * raw.integer("n_shared_experts", 1), shared_gated=False,
        groups=groups if grouped else 1, groups_used=used if grouped else 1, group_best=1,
        scale=raw.number("routed_scaling_factor", 1.0),
    )  # fmt: skip
    sparse = read_first_dense(raw, 0)
    return read_decoder(raw, "deepseek_v2", experts=experts, sparse_layers=sparse, **read_latent(raw))  # fmt: skip


def read_v3(raw: RawConfig) -> DecoderConfig:
    return read_routed(
        raw, "deepseek_v3", sparse=read_first_dense(raw, 3), shared=raw.integer("n_shared_experts", 1),
        scale=2.5, **read_latent(raw),
    )  # fmt: skip


def read_v32(raw: RawConfig) -> DecoderConfig:
    raw.ignore("index_n_heads", "index_head_dim", "layer_types")
    dense = read_routed(
        raw, "deepseek_v32", sparse=read_first_dense(raw, 3), shared=raw.integer("n_shared_experts", 1),
        scale=2.5, **read_latent(raw),
    )  # fmt: skip
    positions = min(dense.max_positions, raw.integer("index_topk", 2048))
    return replace(dense, max_positions=positions, indexed=True)


_STACKS = expert_stacks("mlp.experts", "mlp.switch_mlp")
_BY_SOFTMAX = {role: name for role, name in ROUTED.items() if role != "router_bias"}
V2 = Family("deepseek_v2", "model.", {**LATENT_NAMES, **_BY_SOFTMAX}, read_v2, COMPUTED, stacks=_STACKS)  # fmt: skip
V3 = Family("deepseek_v3", "model.", {**LATENT_NAMES, **ROUTED}, read_v3, COMPUTED, stacks=_STACKS)
V32 = Family("deepseek_v32", "model.", V3.names, read_v32, COMPUTED, stacks=_STACKS)
