"""LFM2 (arXiv:2511.23404): a gated short convolution in most layers, attention with norms of heads in the others; LFM2-MoE: experts."""

from __future__ import annotations

from typing import Any

from ..config import DecoderConfig, Experts, RawConfig
from ..recurrence import ShortConv
from ..rope import read_rope
from .family import Family
from .standard import COMPUTED, NAMES, expert_stacks, read_decoder

_FFN = "model.layers.{}.feed_forward."
_LINEARS = (("gate", "w1"), ("up", "w3"), ("down", "w2"))


def _read(raw: RawConfig, model_type: str, convolved: tuple[bool, ...], **more: Any) -> DecoderConfig:  # fmt: skip
    tied = "tie_embedding" if "tie_embedding" in raw.values else "tie_word_embeddings"
    conv = ShortConv(raw.integer("hidden_size"), raw.integer("conv_L_cache", 3), raw.flag("conv_bias", False))  # fmt: skip
    raw.ignore("tie_embedding", "tie_word_embeddings")
    return read_decoder(
        raw, model_type, norm_eps=raw.number("norm_eps", 1e-5), query_norm="head", activation="silu",
        num_kv_heads=raw.integer("num_key_value_heads", 8), tied=raw.flag(tied, True),
        rope=read_rope(raw, theta=1e6), recurrence=conv, recurrent_layers=convolved, **more,
    )  # fmt: skip


def _convolved(raw: RawConfig) -> tuple[bool, ...]:
    layers, kinds = range(raw.integer("num_hidden_layers")), raw.strings("layer_types")
    attention = raw.integers("full_attn_idxs") or layers
    if kinds is None:
        return tuple(layer not in attention for layer in layers)
    for kind in kinds:
        if kind not in ("conv", "full_attention"):
            raise raw.unsupported("layer_types", kind, "conv or full_attention")
    return tuple(kind == "conv" for kind in kinds)


def read_dense(raw: RawConfig) -> DecoderConfig:
    inner = raw.integer("block_ff_dim" if "block_ff_dim" in raw.values else "intermediate_size")
    multiple, scale = raw.integer("block_multiple_of", 256), raw.number("block_ffn_dim_multiplier", 1.0)  # fmt: skip
    raw.ignore("block_ff_dim", "intermediate_size")
    if raw.flag("block_auto_adjust_ff_dim", True):
        inner = -(-int(scale * int(2 * inner / 3)) // multiple) * multiple
    return _read(raw, "lfm2", _convolved(raw), intermediate_size=inner)


def read_moe(raw: RawConfig) -> DecoderConfig:
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
    return _read(raw, "lfm2_moe", _convolved(raw), experts=experts, sparse_layers=sparse)


_NAMES = {
    **NAMES,
    "attn_norm": "model.layers.{}.operator_norm",
    "mlp_norm": "model.layers.{}.ffn_norm",
    "q_norm": "model.layers.{}.self_attn.q_layernorm",
    "k_norm": "model.layers.{}.self_attn.k_layernorm",
    "o": "model.layers.{}.self_attn.out_proj",
    "conv_in": "model.layers.{}.conv.in_proj",
    "conv": "model.layers.{}.conv.conv",
    "conv_out": "model.layers.{}.conv.out_proj",
    **{role: f"{_FFN}{name}" for role, name in _LINEARS},
    "final_norm": "model.embedding_norm",
}
_EXPERTS = {
    "router": f"{_FFN}gate",
    "router_bias": f"{_FFN}expert_bias",
    **{f"expert_{role}": f"{_FFN}experts.{{}}.{name}" for role, name in _LINEARS},
}
LFM2 = Family("lfm2", "model.", _NAMES, read_dense, COMPUTED)
LFM2_MOE = Family("lfm2_moe", "model.", {**_NAMES, **_EXPERTS}, read_moe, COMPUTED, stacks=expert_stacks("feed_forward.experts"))  # fmt: skip
