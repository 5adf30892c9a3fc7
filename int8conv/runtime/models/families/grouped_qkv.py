"""Shared by BLOOM and Falcon: their config keys."""

from __future__ import annotations

from typing import Any

from ..config import DecoderConfig
from ..raw_config import RawConfig


def read_width(raw: RawConfig) -> int:
    """``n_embed`` in configs of the first releases, which takes precedence."""
    raw.ignore("n_embed", "hidden_size")
    return raw.integer("n_embed" if raw.values.get("n_embed") is not None else "hidden_size")


def read_grouped(
    raw: RawConfig, model_type: str, heads: int, layers: int,
    **more: Any,  # fields of it
) -> DecoderConfig:  # fmt: skip
    hidden = read_width(raw)
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
