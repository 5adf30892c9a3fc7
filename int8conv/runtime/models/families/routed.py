"""Shared by families whose experts are routed by sigmoids and a bias, as in DeepSeek-V3 (arXiv:2412.19437): keys and names."""

from __future__ import annotations

from typing import Any, Final

from ..config import DecoderConfig, Experts
from ..raw_config import RawConfig
from .standard import read_decoder

ROUTED: Final = {
    "router": "model.layers.{}.mlp.gate",
    "router_bias": "model.layers.{}.mlp.gate.e_score_correction_bias",
    "expert_gate": "model.layers.{}.mlp.experts.{}.gate_proj",
    "expert_up": "model.layers.{}.mlp.experts.{}.up_proj",
    "expert_down": "model.layers.{}.mlp.experts.{}.down_proj",
    "shared_gate": "model.layers.{}.mlp.shared_experts.gate_proj",
    "shared_up": "model.layers.{}.mlp.shared_experts.up_proj",
    "shared_down": "model.layers.{}.mlp.shared_experts.down_proj",
}


def read_first_dense(raw: RawConfig, default: int) -> tuple[bool, ...]:
    """Which layers have experts: by ``mlp_layer_types``, or all from ``first_k_dense_replace`` on."""
    layers = raw.integer("num_hidden_layers")
    first = raw.values.get("first_k_dense_replace")
    first = default if type(first) is not int else first
    kinds = raw.strings("mlp_layer_types")
    raw.ignore("first_k_dense_replace")
    if kinds is None:
        return tuple(layer >= first for layer in range(layers))
    for kind in kinds:
        if kind not in ("dense", "sparse"):
            raise raw.unsupported("mlp_layer_types", kind, "dense or sparse")
    return tuple(kind == "sparse" for kind in kinds)


def read_routed(
    raw: RawConfig, model_type: str, *, sparse: tuple[bool, ...], shared: int, count: str = "n_routed_experts",
    scale: float = 1.0, normalised: bool = True, **more: Any,  # fields of the config, as for read_decoder
) -> DecoderConfig:  # fmt: skip
    """Read a decoder with such experts in the ``sparse`` layers, and ``shared`` experts that every token passes through."""
    raw.ignore("output_router_logits", "router_aux_loss_coef", "aux_loss_alpha", "seq_aux")
    raw.ignore("ep_size")
    inner = raw.integer("moe_intermediate_size")
    experts = routed_experts(raw, inner, inner * shared, count, scale, normalised=normalised)
    return read_decoder(raw, model_type, experts=experts, sparse_layers=sparse, **more)


def routed_experts(
    raw: RawConfig, inner: int, shared: int, count: str = "n_routed_experts", scale: float = 1.0, *, normalised: bool = True,
) -> Experts:  # fmt: skip
    """Such experts; ``shared``: inner size of the FFN that every token passes through."""
    raw.fixed("scoring_func", "sigmoid")
    raw.fixed("topk_method", "noaux_tc")
    raw.fixed("moe_layer_freq", 1)
    return Experts(
        count=raw.integer(count),
        used=raw.integer("num_experts_per_tok"),
        intermediate_size=inner,
        normalised=raw.flag("norm_topk_prob", normalised),
        shared_size=shared,
        shared_gated=False,
        scoring="sigmoid",
        biased=True,
        groups=raw.integer("n_group", 1),
        groups_used=raw.integer("topk_group", 1),
        scale=raw.number("routed_scaling_factor", scale),
    )
