"""Command R: parallel blocks with one LayerNorm without bias, interleaved rotary pairs, scaled logits.

Command R7B and A: a window in three of four layers; the others rotate nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..config import DecoderConfig
from ..raw_config import RawConfig
from ..rope import read_rope
from .family import Family
from .standard import COMPUTED, NAMES, read_decoder, read_windows


def _read(raw: RawConfig, model_type: str, **more: Any) -> DecoderConfig:
    bias = raw.flag("attention_bias", False)
    return read_decoder(
        raw, model_type,
        norm="layer", norm_bias=False, norm_eps=raw.number("layer_norm_eps", 1e-5), parallel=True,
        rope=replace(read_rope(raw), interleaved=True), tied=raw.flag("tie_word_embeddings", True),
        qkv_bias=bias, out_bias=bias, logit_scale=raw.number("logit_scale", 0.0625), **more,
    )  # fmt: skip


def read_cohere(raw: RawConfig) -> DecoderConfig:
    raw.fixed("use_qk_norm", False)
    return _read(raw, "cohere")


def read_cohere2(raw: RawConfig) -> DecoderConfig:
    raw.ignore("cache_implementation", "order_of_interleaved_layers", "layer_switch")
    every = raw.integer("sliding_window_pattern", 4)
    windows = read_windows(raw, 4096, every=every)
    return _read(raw, "cohere2", windows=windows, unrotated=tuple(w is None for w in windows))


_NAMES = {role: name for role, name in NAMES.items() if role != "mlp_norm"}
COHERE = Family("cohere", "model.", _NAMES, read_cohere, COMPUTED)
COHERE2 = Family("cohere2", "model.", _NAMES, read_cohere2, COMPUTED)
