"""BLOOM (arXiv:2211.05100): ALiBi, a norm after the embedding, q, k and v grouped by heads.

Falcon (arXiv:2311.16867): parallel blocks; one key head (7B), groups (40B and larger), or ALiBi (RW).
"""

from __future__ import annotations

from typing import Any

from ..config import ACTIVATIONS, DecoderConfig
from ..raw_config import RawConfig
from ..rope import read_rope
from .family import Family


def _width(raw: RawConfig) -> int:
    """``n_embed`` in configs of the first releases, which takes precedence."""
    raw.ignore("n_embed", "hidden_size")
    return raw.integer("n_embed" if raw.values.get("n_embed") is not None else "hidden_size")


def _read(raw: RawConfig, model_type: str, heads: int, layers: int, **more: Any) -> DecoderConfig:
    hidden = _width(raw)
    if hidden % heads:
        raise raw.unsupported("num_attention_heads", heads, f"a divisor of hidden_size {hidden}")
    raw.fixed("apply_residual_connection_post_layernorm", False)
    raw.ignore("slow_but_exact", "head_dim", "hidden_dropout", "skip_bias_add", "offset_alibi", "seq_length",
               "skip_bias_add_qkv", "attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion",
               "unk_token_id", "num_ln_in_parallel_attn")  # fmt: skip
    return DecoderConfig(
        model_type=model_type, vocab_size=raw.integer("vocab_size"), hidden_size=hidden, num_layers=layers,
        num_heads=heads, head_dim=hidden // heads, norm="layer",
        norm_eps=raw.number("layer_norm_epsilon", 1e-5), gated=False, embedding_size=hidden,
        tied=raw.flag("tie_word_embeddings", True), **more,
    )  # fmt: skip


def read_bloom(raw: RawConfig) -> DecoderConfig:
    heads = raw.integer("num_attention_heads" if "n_head" not in raw.values else "n_head")
    layers = raw.integer("num_hidden_layers" if "n_layer" not in raw.values else "n_layer")
    hidden = _width(raw)
    positions = raw.integer("seq_length", raw.integer("max_position_embeddings", 2048))
    raw.ignore("n_inner", "num_key_value_heads", "intermediate_size")
    return _read(
        raw, "bloom", heads, layers,
        num_kv_heads=heads, intermediate_size=4 * hidden, max_positions=positions, activation="gelu_tanh", rope=None,
        alibi=True, embedding_norm=True, fused_qkv="heads", qkv_bias=True, out_bias=True, mlp_bias=True,
    )  # fmt: skip


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
    hidden = _width(raw)
    return _read(
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


BLOOM = Family(
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
FALCON = Family("falcon", "transformer.", falcon_names({}), read_falcon, variant=falcon_names)
