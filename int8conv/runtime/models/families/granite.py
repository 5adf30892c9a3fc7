"""Granite 3: Llama with multipliers for embeddings, residuals, scores and logits."""

from __future__ import annotations

from ..config import DecoderConfig, RawConfig
from .family import Family
from .standard import COMPUTED, NAMES, read_decoder


def read_config(raw: RawConfig) -> DecoderConfig:
    bias = raw.flag("attention_bias", False)
    return read_decoder(
        raw, "granite",
        qkv_bias=bias, out_bias=bias, mlp_bias=raw.flag("mlp_bias", False),
        embedding_scale=raw.number("embedding_multiplier", 1.0),
        residual_scale=raw.number("residual_multiplier", 1.0),
        attention_scale=raw.number("attention_multiplier", 1.0),
        logit_scale=1 / raw.number("logits_scaling", 1.0),
    )  # fmt: skip


FAMILY = Family("granite", "model.", NAMES, read_config, COMPUTED)
