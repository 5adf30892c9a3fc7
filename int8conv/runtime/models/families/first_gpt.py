"""Shared by GPT-2 and GPT-J: their config keys."""

from __future__ import annotations

from typing import Any, Final

from ..config import ACTIVATIONS, DecoderConfig
from ..raw_config import RawConfig

_OF_TRAINING: Final = (
    "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type",
    "summary_use_proj", "classifier_dropout", "n_ctx", "reorder_and_upcast_attn", "gradient_checkpointing",
)  # fmt: skip


def read_first_gpt(raw: RawConfig, model_type: str, **more: Any) -> DecoderConfig:  # fields of it
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
