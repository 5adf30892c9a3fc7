"""GPT-2: learned positions, linears stored as ``[in, out]``. GPT-J: parallel blocks, interleaved rotary pairs.
GPT-NeoX (arXiv:2204.06745): parallel blocks with two norms, q, k and v grouped by heads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..config import ACTIVATIONS, DecoderConfig, Rope
from ..raw_config import RawConfig
from ..rope import read_rope
from .family import Family
from .standard import read_decoder

_OF_TRAINING = (
    "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type",
    "summary_use_proj", "classifier_dropout", "n_ctx", "reorder_and_upcast_attn", "gradient_checkpointing",
)  # fmt: skip


def _read_old(raw: RawConfig, model_type: str, **more: Any) -> DecoderConfig:
    """Read the config keys of the first GPTs."""
    hidden, heads = raw.integer("n_embd"), raw.integer("n_head")
    if hidden % heads:
        raise raw.unsupported("n_head", heads, f"a divisor of n_embd {hidden}")
    raw.ignore(*_OF_TRAINING, "head_dim", "num_key_value_heads", "intermediate_size")
    return DecoderConfig(
        model_type=model_type,
        vocab_size=raw.integer("vocab_size"),
        hidden_size=hidden,
        num_layers=raw.integer("n_layer"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        intermediate_size=raw.integer("n_inner", 4 * hidden),
        max_positions=raw.integer("n_positions", 1024),
        norm="layer",
        norm_eps=raw.number("layer_norm_epsilon", 1e-5),
        activation=raw.choice("activation_function", ACTIVATIONS, "gelu_new"),
        gated=False,
        embedding_size=hidden,
        mlp_bias=True,
        **more,
    )


def read_gpt2(raw: RawConfig) -> DecoderConfig:
    raw.fixed("scale_attn_by_inverse_layer_idx", False)
    raw.fixed("add_cross_attention", False)
    scaled = raw.flag("scale_attn_weights", True)
    return _read_old(
        raw, "gpt2", rope=None, tied=raw.flag("tie_word_embeddings", True), qkv_bias=True, out_bias=True,
        fused_qkv="rows", transposed=True, attention_scale=None if scaled else 1.0,
    )  # fmt: skip


def read_gptj(raw: RawConfig) -> DecoderConfig:
    raw.ignore("rotary")
    size = raw.size_per_head("n_embd", "n_head")
    rope = Rope(10000.0, rotary_fraction=raw.integer("rotary_dim", size) / size, interleaved=True)
    tied = raw.flag("tie_word_embeddings", False)
    return _read_old(raw, "gptj", rope=rope, tied=tied, head_bias=True, parallel=True)


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


GPT2 = Family(
    "gpt2",
    "transformer.",
    {
        "embed": "transformer.wte",
        "positions": "transformer.wpe",
        "attn_norm": "transformer.h.{}.ln_1",
        "qkv": "transformer.h.{}.attn.c_attn",
        "o": "transformer.h.{}.attn.c_proj",
        "mlp_norm": "transformer.h.{}.ln_2",
        "up": "transformer.h.{}.mlp.c_fc",
        "down": "transformer.h.{}.mlp.c_proj",
        "final_norm": "transformer.ln_f",
        "head": "lm_head",
    },
    read_gpt2,
    (".attn.bias", ".attn.masked_bias"),
)
GPTJ = Family(
    "gptj",
    "transformer.",
    {
        "embed": "transformer.wte",
        "attn_norm": "transformer.h.{}.ln_1",
        "q": "transformer.h.{}.attn.q_proj",
        "k": "transformer.h.{}.attn.k_proj",
        "v": "transformer.h.{}.attn.v_proj",
        "o": "transformer.h.{}.attn.out_proj",
        "up": "transformer.h.{}.mlp.fc_in",
        "down": "transformer.h.{}.mlp.fc_out",
        "final_norm": "transformer.ln_f",
        "head": "lm_head",
    },
    read_gptj,
    (".attn.bias", ".attn.masked_bias"),
)
GPT_NEOX = Family(
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
