"""Falcon (arXiv:2311.16867): parallel blocks; one key head (7B), groups (40B and larger), or ALiBi (RW)."""

from __future__ import annotations

from typing import Any

from ..config import ACTIVATIONS, DecoderConfig
from ..raw_config import RawConfig
from ..rope import read_rope
from .family import Family
from .grouped_qkv import read_grouped, read_width


def read_falcon(raw: RawConfig) -> DecoderConfig:
    heads, layers = raw.integer("num_attention_heads"), raw.integer("num_hidden_layers")
    grouped = raw.flag("new_decoder_architecture", False)
    single = raw.flag("multi_query", True)
    kv_heads = raw.integer("num_kv_heads", heads) if grouped else 1 if single else heads
    raw.ignore("num_kv_heads", "n_head_kv", "rope_theta")
    parallel = raw.flag("parallel_attn", True)
    if grouped and not parallel:
        raise raw.unsupported("parallel_attn", False)
    alibi, bias = raw.flag("alibi", False), raw.flag("bias", False)
    hidden = read_width(raw)
    return read_grouped(
        raw, "falcon", heads, layers,
        num_kv_heads=kv_heads, intermediate_size=raw.integer("ffn_hidden_size", 4 * hidden),
        max_positions=raw.integer("max_position_embeddings", 2048),
        activation=raw.choice("activation", ACTIVATIONS, "gelu"),
        rope=None if alibi else read_rope(raw), alibi=alibi, alibi_scaled=True,
        parallel=parallel, fused_qkv="heads", qkv_bias=bias, out_bias=bias, mlp_bias=bias,
    )  # fmt: skip


def falcon_names(config: dict[str, Any]) -> dict[str, str]:
    """The norms' names depend on the kind of Falcon."""
    names = {
        "embed": "transformer.word_embeddings",
        "attn_norm": "transformer.h.{}.input_layernorm",
        "qkv": "transformer.h.{}.self_attention.query_key_value",
        "o": "transformer.h.{}.self_attention.dense",
        "up": "transformer.h.{}.mlp.dense_h_to_4h",
        "down": "transformer.h.{}.mlp.dense_4h_to_h",
        "final_norm": "transformer.ln_f",
        "head": "lm_head",
    }
    if config.get("new_decoder_architecture"):
        if config.get("num_ln_in_parallel_attn") in (None, 2):
            names["attn_norm"] = "transformer.h.{}.ln_attn"
            names["mlp_norm"] = "transformer.h.{}.ln_mlp"
    elif config.get("parallel_attn") is False:
        names["mlp_norm"] = "transformer.h.{}.post_attention_layernorm"
    return names


FAMILY = Family("falcon", "transformer.", falcon_names({}), read_falcon, variant=falcon_names)
