"""Shared by Gemma 1 to 3: config keys, and names of norms around both parts of a block."""

from __future__ import annotations

from typing import Any, Final

from ..config import ACTIVATIONS, DecoderConfig
from ..raw_config import RawConfig
from .standard import NAMES, POST_NORMS, read_decoder

AROUND: Final = {**NAMES, **POST_NORMS, "mlp_norm": "model.layers.{}.pre_feedforward_layernorm"}


def read_like_gemma(
    raw: RawConfig, model_type: str, activation: str,
    **more: Any,  # fields of it
) -> DecoderConfig:  # fmt: skip
    bias = raw.flag("attention_bias", False)
    raw.fixed("use_bidirectional_attention", False)
    return read_decoder(
        raw, model_type,
        head_dim=raw.integer("head_dim", 256), tied=raw.flag("tie_word_embeddings", True),
        activation=raw.choice(activation, ACTIVATIONS, "gelu_pytorch_tanh"), norm_offset=1.0,
        embedding_scale=raw.integer("hidden_size") ** 0.5, qkv_bias=bias, out_bias=bias, **more,
    )  # fmt: skip


def read_around(
    raw: RawConfig, model_type: str, windows: tuple[int | None, ...],
    **more: Any,  # fields of it
) -> DecoderConfig:  # fmt: skip
    return read_like_gemma(
        raw, model_type, "hidden_activation",
        norms="around", windows=windows,
        attention_scale=raw.number("query_pre_attn_scalar", 256) ** -0.5,
        attention_softcap=raw.optional_number("attn_logit_softcapping"),
        logit_softcap=raw.optional_number("final_logit_softcapping"), **more,
    )  # fmt: skip
