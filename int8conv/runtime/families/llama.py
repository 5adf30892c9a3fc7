"""Llama (arXiv:2302.13971): RMSNorm, rotary positions, gated FFN, grouped-query attention."""

from __future__ import annotations

from ..config import ACTIVATIONS, DecoderConfig, RawConfig
from ..rope import read_rope
from .family import Family


def read_config(raw: RawConfig) -> DecoderConfig:
    hidden, heads = raw.integer("hidden_size"), raw.integer("num_attention_heads")
    attention_bias = raw.flag("attention_bias", False)
    return DecoderConfig(
        model_type="llama",
        vocab_size=raw.integer("vocab_size"),
        hidden_size=hidden,
        num_layers=raw.integer("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=raw.integer("num_key_value_heads", heads),
        head_dim=raw.integer("head_dim", hidden // heads),
        intermediate_size=raw.integer("intermediate_size"),
        max_positions=raw.integer("max_position_embeddings", 2048),
        norm="rms",
        norm_eps=raw.number("rms_norm_eps", 1e-6),
        activation=raw.choice("hidden_act", ACTIVATIONS, "silu"),
        gated=True,
        rope=read_rope(raw),
        embedding_size=hidden,
        tied=raw.flag("tie_word_embeddings", False),
        qkv_bias=attention_bias,
        out_bias=attention_bias,
        mlp_bias=raw.flag("mlp_bias", False),
    )


FAMILY = Family(
    model_type="llama",
    base_prefix="model.",
    names={
        "embed": "model.embed_tokens",
        "attn_norm": "model.layers.{}.input_layernorm",
        "q": "model.layers.{}.self_attn.q_proj",
        "k": "model.layers.{}.self_attn.k_proj",
        "v": "model.layers.{}.self_attn.v_proj",
        "o": "model.layers.{}.self_attn.o_proj",
        "mlp_norm": "model.layers.{}.post_attention_layernorm",
        "gate": "model.layers.{}.mlp.gate_proj",
        "up": "model.layers.{}.mlp.up_proj",
        "down": "model.layers.{}.mlp.down_proj",
        "final_norm": "model.norm",
        "head": "lm_head",
    },
    read_config=read_config,
    skipped=(".rotary_emb.inv_freq",),
)
