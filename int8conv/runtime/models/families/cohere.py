"""Command R: parallel blocks with one LayerNorm without bias, interleaved rotary pairs, scaled logits."""

from __future__ import annotations

from dataclasses import replace

from ..config import DecoderConfig, RawConfig
from ..rope import read_rope
from .family import Family
from .standard import COMPUTED, NAMES, read_decoder


def read_config(raw: RawConfig) -> DecoderConfig:
    raw.fixed("use_qk_norm", False)
    bias = raw.flag("attention_bias", False)
    return read_decoder(
        raw, "cohere",
        norm="layer", norm_bias=False, norm_eps=raw.number("layer_norm_eps", 1e-5), parallel=True,
        rope=replace(read_rope(raw), interleaved=True), tied=raw.flag("tie_word_embeddings", True),
        qkv_bias=bias, out_bias=bias, logit_scale=raw.number("logit_scale", 0.0625),
    )  # fmt: skip


FAMILY = Family(
    "cohere", "model.", {role: name for role, name in NAMES.items() if role != "mlp_norm"},
    read_config, COMPUTED,
)  # fmt: skip
