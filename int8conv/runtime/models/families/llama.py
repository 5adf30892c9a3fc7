"""Llama (arXiv:2302.13971): RMSNorm, rotary positions, gated FFN, grouped-query attention."""

from __future__ import annotations

from ..config import DecoderConfig
from ..raw_config import RawConfig
from .family import Family
from .standard import COMPUTED, NAMES, read_decoder


def read_config(raw: RawConfig) -> DecoderConfig:
    bias = raw.flag("attention_bias", False)
    return read_decoder(
        raw, "llama", qkv_bias=bias, out_bias=bias, mlp_bias=raw.flag("mlp_bias", False)
    )


FAMILY = Family("llama", "model.", NAMES, read_config, COMPUTED)
