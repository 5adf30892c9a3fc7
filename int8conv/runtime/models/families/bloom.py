"""BLOOM (arXiv:2211.05100): ALiBi, a norm after the embedding, q, k and v grouped by heads."""

from __future__ import annotations

from ..config import DecoderConfig
from ..raw_config import RawConfig
from .family import Family
from .grouped_qkv import read_grouped, read_width


def read_bloom(raw: RawConfig) -> DecoderConfig:
    heads = raw.integer("num_attention_heads" if "n_head" not in raw.values else "n_head")
    layers = raw.integer("num_hidden_layers" if "n_layer" not in raw.values else "n_layer")
    hidden = read_width(raw)
    positions = raw.integer("seq_length", raw.integer("max_position_embeddings", 2048))
    raw.ignore("n_inner", "num_key_value_heads", "intermediate_size")
    return read_grouped(
        raw, "bloom", heads, layers,
        num_kv_heads=heads, intermediate_size=4 * hidden, max_positions=positions, activation="gelu_tanh", rope=None,
        alibi=True, embedding_norm=True, fused_qkv="heads", qkv_bias=True, out_bias=True, mlp_bias=True,
    )  # fmt: skip


FAMILY = Family(
    "bloom",
    "transformer.",
    {
        "embed": "transformer.word_embeddings",
        "embedding_norm": "transformer.word_embeddings_layernorm",
        "attn_norm": "transformer.h.{}.input_layernorm",
        "qkv": "transformer.h.{}.self_attention.query_key_value",
        "o": "transformer.h.{}.self_attention.dense",
        "mlp_norm": "transformer.h.{}.post_attention_layernorm",
        "up": "transformer.h.{}.mlp.dense_h_to_4h",
        "down": "transformer.h.{}.mlp.dense_4h_to_h",
        "final_norm": "transformer.ln_f",
        "head": "lm_head",
    },
    read_bloom,
)
