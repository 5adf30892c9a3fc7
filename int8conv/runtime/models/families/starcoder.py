"""StarCoder 2 (arXiv:2402.19173): LayerNorm, biases, a plain FFN, rotary positions, a window."""

from __future__ import annotations

from ..config import ACTIVATIONS, DecoderConfig
from ..raw_config import RawConfig
from .family import Family
from .standard import COMPUTED, NAMES, read_decoder, read_windows


def read_config(raw: RawConfig) -> DecoderConfig:
    bias = raw.flag("use_bias", True)
    raw.ignore("embedding_dropout", "residual_dropout", "norm_type", "mlp_type")
    return read_decoder(
        raw, "starcoder2",
        num_kv_heads=raw.integer("num_key_value_heads", 2), norm="layer",
        norm_eps=raw.number("norm_epsilon", 1e-5), gated=False, windows=read_windows(raw),
        activation=raw.choice("hidden_act", ACTIVATIONS, "gelu_pytorch_tanh"),
        tied=raw.flag("tie_word_embeddings", True), qkv_bias=bias, out_bias=bias, mlp_bias=bias,
    )  # fmt: skip


FAMILY = Family(
    "starcoder2",
    "model.",
    {
        **{role: name for role, name in NAMES.items() if role != "gate"},
        "up": "model.layers.{}.mlp.c_fc",
        "down": "model.layers.{}.mlp.c_proj",
    },
    read_config,
    COMPUTED,
)
