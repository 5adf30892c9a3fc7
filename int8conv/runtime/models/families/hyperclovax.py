"""HyperCLOVA X SEED: Llama with multipliers as in Granite, and norms around attention and FFN."""

from __future__ import annotations

from ..config import DecoderConfig
from ..raw_config import RawConfig
from .family import Family
from .standard import COMPUTED, NAMES, read_decoder


def read_config(raw: RawConfig) -> DecoderConfig:
    bias = raw.flag("attention_bias", False)
    return read_decoder(
        raw, "hyperclovax",
        norms="around" if raw.flag("use_post_norm", True) else "before",
        qkv_bias=bias, out_bias=bias, mlp_bias=raw.flag("mlp_bias", False),
        embedding_scale=raw.number("embedding_multiplier", 1.0),
        residual_scale=raw.number("residual_multiplier", 1.0),
        attention_scale=raw.optional_number("attention_multiplier"),
        logit_scale=raw.number("logits_scaling", 1.0),
    )  # fmt: skip


FAMILY = Family(
    "hyperclovax",
    "model.",
    {
        **NAMES,
        "attn_post_norm": "model.layers.{}.post_norm1",
        "mlp_post_norm": "model.layers.{}.post_norm2",
    },
    read_config,
    COMPUTED,
)
