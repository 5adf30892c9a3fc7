"""VaultGemma: Gemma 2 with norms before attention and FFN only."""

from __future__ import annotations

from ..config import ACTIVATIONS, DecoderConfig
from ..raw_config import RawConfig
from .family import Family
from .standard import COMPUTED, NAMES, read_decoder, read_windows


def read_config(raw: RawConfig) -> DecoderConfig:
    bias = raw.flag("attention_bias", False)
    raw.fixed("use_bidirectional_attention", False)
    return read_decoder(
        raw, "vaultgemma",
        head_dim=raw.integer("head_dim", 256), tied=raw.flag("tie_word_embeddings", True),
        activation=raw.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh"), norm_offset=1.0,
        embedding_scale=raw.integer("hidden_size") ** 0.5, qkv_bias=bias, out_bias=bias,
        windows=read_windows(raw, 4096, every=2),
        attention_scale=raw.number("query_pre_attn_scalar", 256) ** -0.5,
        attention_softcap=raw.optional_number("attn_logit_softcapping"),
        logit_softcap=raw.optional_number("final_logit_softcapping"),
    )  # fmt: skip


FAMILY = Family(
    "vaultgemma",
    "model.",
    {**NAMES, "mlp_norm": "model.layers.{}.pre_feedforward_layernorm"},
    read_config,
    COMPUTED,
)
