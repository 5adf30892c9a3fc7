"""GPT-NeoX (arXiv:2204.06745): parallel blocks with two norms, q, k and v grouped by heads."""

from __future__ import annotations

from dataclasses import replace

from ..config import ACTIVATIONS, DecoderConfig
from ..raw_config import RawConfig
from ..rope import read_rope
from .family import Family
from .standard import read_decoder


def read_gpt_neox(raw: RawConfig) -> DecoderConfig:
    rope = read_rope(raw, 0.25)
    old_base = raw.optional_number("rotary_emb_base")
    raw.ignore(
        "hidden_dropout", "classifier_dropout", "rotary_pct", "num_key_value_heads", "head_dim"
    )
    bias = raw.flag("attention_bias", True)
    heads = raw.integer("num_attention_heads")
    return read_decoder(
        raw, "gpt_neox",
        num_kv_heads=heads, head_dim=raw.size_per_head("hidden_size", "num_attention_heads"),
        norm="layer", norm_eps=raw.number("layer_norm_eps", 1e-5), gated=False,
        activation=raw.choice("hidden_act", ACTIVATIONS, "gelu"),
        rope=rope if old_base is None else replace(rope, theta=old_base),
        parallel=raw.flag("use_parallel_residual", True), fused_qkv="heads",
        qkv_bias=bias, out_bias=bias, mlp_bias=True,
    )  # fmt: skip


FAMILY = Family(
    "gpt_neox",
    "gpt_neox.",
    {
        "embed": "gpt_neox.embed_in",
        "attn_norm": "gpt_neox.layers.{}.input_layernorm",
        "qkv": "gpt_neox.layers.{}.attention.query_key_value",
        "o": "gpt_neox.layers.{}.attention.dense",
        "mlp_norm": "gpt_neox.layers.{}.post_attention_layernorm",
        "up": "gpt_neox.layers.{}.mlp.dense_h_to_4h",
        "down": "gpt_neox.layers.{}.mlp.dense_4h_to_h",
        "final_norm": "gpt_neox.final_layer_norm",
        "head": "embed_out",
    },
    read_gpt_neox,
    (".attention.bias", ".attention.masked_bias", ".attention.rotary_emb.inv_freq"),
)
