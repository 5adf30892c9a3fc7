"""LFM2 (arXiv:2511.23404): a gated short convolution in most layers, attention with norms of heads in the others."""

from __future__ import annotations

from typing import Any

from ..config import DecoderConfig
from ..raw_config import RawConfig
from ..recurrence import ShortConv
from ..rope import read_rope
from .family import Family
from .standard import COMPUTED, NAMES, read_decoder

FFN = "model.layers.{}.feed_forward."
LINEARS = (("gate", "w1"), ("up", "w3"), ("down", "w2"))


def read_lfm2(
    raw: RawConfig, model_type: str, convolved: tuple[bool, ...], **more: Any  # fields of it
) -> DecoderConfig:  # fmt: skip
    tied = "tie_embedding" if "tie_embedding" in raw.values else "tie_word_embeddings"
    conv = ShortConv(raw.integer("hidden_size"), raw.integer("conv_L_cache", 3), raw.flag("conv_bias", False))  # fmt: skip
    raw.ignore("tie_embedding", "tie_word_embeddings")
    return read_decoder(
        raw, model_type, norm_eps=raw.number("norm_eps", 1e-5), query_norm="head", activation="silu",
        num_kv_heads=raw.integer("num_key_value_heads", 8), tied=raw.flag(tied, True),
        rope=read_rope(raw, theta=1e6), recurrence=conv, recurrent_layers=convolved, **more,
    )  # fmt: skip


def read_convolved(raw: RawConfig) -> tuple[bool, ...]:
    layers, kinds = range(raw.integer("num_hidden_layers")), raw.strings("layer_types")
    attention = raw.integers("full_attn_idxs") or layers
    if kinds is None:
        return tuple(layer not in attention for layer in layers)
    for kind in kinds:
        if kind not in ("conv", "full_attention"):
            raise raw.unsupported("layer_types", kind, "conv or full_attention")
    return tuple(kind == "conv" for kind in kinds)


def read_config(raw: RawConfig) -> DecoderConfig:
    inner = raw.integer("block_ff_dim" if "block_ff_dim" in raw.values else "intermediate_size")
    multiple, scale = raw.integer("block_multiple_of", 256), raw.number("block_ffn_dim_multiplier", 1.0)  # fmt: skip
    raw.ignore("block_ff_dim", "intermediate_size")
    if raw.flag("block_auto_adjust_ff_dim", True):
        inner = -(-int(scale * int(2 * inner / 3)) // multiple) * multiple
    return read_lfm2(raw, "lfm2", read_convolved(raw), intermediate_size=inner)


_LAYER = "model.layers.{}."
LFM2_NAMES = {
    **NAMES,
    "attn_norm": f"{_LAYER}operator_norm", "mlp_norm": f"{_LAYER}ffn_norm", "o": f"{_LAYER}self_attn.out_proj",
    "q_norm": f"{_LAYER}self_attn.q_layernorm", "k_norm": f"{_LAYER}self_attn.k_layernorm",
    "conv_in": f"{_LAYER}conv.in_proj", "conv": f"{_LAYER}conv.conv", "conv_out": f"{_LAYER}conv.out_proj",
    **{role: f"{FFN}{name}" for role, name in LINEARS}, "final_norm": "model.embedding_norm",
}  # fmt: skip
FAMILY = Family("lfm2", "model.", LFM2_NAMES, read_config, COMPUTED)
