"""Qwen2 (arXiv:2407.10671): biases of q, k and v. Qwen3 (arXiv:2505.09388): norms of heads instead.

Their mixtures of experts have small experts in all or some layers; Qwen2 also has a shared one.
"""

from __future__ import annotations

from typing import Any

from ..config import DecoderConfig, Experts
from ..raw_config import RawConfig
from .family import Family
from .standard import COMPUTED, HEAD_NORMS, NAMES, expert_stacks, read_decoder, read_windows

EXPERTS = {
    "router": "model.layers.{}.mlp.gate",
    "expert_gate": "model.layers.{}.mlp.experts.{}.gate_proj",
    "expert_up": "model.layers.{}.mlp.experts.{}.up_proj",
    "expert_down": "model.layers.{}.mlp.experts.{}.down_proj",
    "shared_gate": "model.layers.{}.mlp.shared_expert.gate_proj",
    "shared_up": "model.layers.{}.mlp.shared_expert.up_proj",
    "shared_down": "model.layers.{}.mlp.shared_expert.down_proj",
    "shared_router": "model.layers.{}.mlp.shared_expert_gate",
}


def _windows(raw: RawConfig) -> tuple[int | None, ...]:
    """Windows of the layers from ``max_window_layers`` on, if used at all."""
    if not raw.flag("use_sliding_window", False):
        raw.ignore("sliding_window", "max_window_layers", "layer_types")
        return ()
    first = raw.values.get("max_window_layers")
    raw.ignore("max_window_layers")
    windows = read_windows(raw)
    if raw.values.get("layer_types") is None and type(first) is int:
        return tuple(None if layer < first else size for layer, size in enumerate(windows))
    return windows


def _dense(raw: RawConfig, model_type: str, **more: Any) -> DecoderConfig:
    return read_decoder(raw, model_type, windows=_windows(raw), **more)


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
    return _dense(raw, model_type, experts=experts, sparse_layers=sparse, **more)


def read_qwen2(raw: RawConfig) -> DecoderConfig:
    return _dense(raw, "qwen2", qkv_bias=True)


def read_qwen3(raw: RawConfig) -> DecoderConfig:
    bias = raw.flag("attention_bias", False)
    size = raw.integer("head_dim", 128)
    return _dense(raw, "qwen3", query_norm="head", head_dim=size, qkv_bias=bias, out_bias=bias)


def read_qwen2_moe(raw: RawConfig) -> DecoderConfig:
    return _sparse(raw, "qwen2_moe", shared=True, qkv_bias=raw.flag("qkv_bias", True))


def read_qwen3_moe(raw: RawConfig) -> DecoderConfig:
    bias = raw.flag("attention_bias", False)
    return _sparse(
        raw, "qwen3_moe", shared=False, query_norm="head", qkv_bias=bias, out_bias=bias
    )  # fmt: skip


_NORMED = {**NAMES, **HEAD_NORMS}
QWEN2 = Family("qwen2", "model.", NAMES, read_qwen2, COMPUTED)
QWEN3 = Family("qwen3", "model.", _NORMED, read_qwen3, COMPUTED)
_STACKS = expert_stacks("mlp.experts", "mlp.switch_mlp")
QWEN2_MOE = Family(
    "qwen2_moe", "model.", {**NAMES, **EXPERTS}, read_qwen2_moe, COMPUTED, stacks=_STACKS
)
QWEN3_MOE = Family(
    "qwen3_moe", "model.", {**_NORMED, **EXPERTS}, read_qwen3_moe, COMPUTED, stacks=_STACKS
)
