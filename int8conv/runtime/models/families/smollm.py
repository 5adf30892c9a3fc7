"""SmolLM3: Llama without rotary positions in every fourth layer (arXiv:2501.18795, section 3)."""

from __future__ import annotations

from ..config import DecoderConfig
from ..raw_config import RawConfig
from ..rope import read_rope
from .family import Family
from .standard import COMPUTED, NAMES, read_decoder, read_windows


def read_config(raw: RawConfig) -> DecoderConfig:
    bias = raw.flag("attention_bias", False)
    layers, every = raw.integer("num_hidden_layers"), raw.integer("no_rope_layer_interval", 4)
    rotated = raw.integers("no_rope_layers")  # 1: has rotary positions
    rotated = rotated or [int((layer + 1) % every != 0) for layer in range(layers)]
    raw.ignore("max_window_layers")
    windows: tuple[int | None, ...] = ()
    if raw.flag("use_sliding_window", False):
        windows = read_windows(raw)
        if raw.values.get("layer_types") is None:
            windows = tuple(
                None if turns else w for turns, w in zip(rotated, windows, strict=False)
            )
    else:
        raw.ignore("sliding_window", "layer_types")
    return read_decoder(
        raw, "smollm3",
        tied=raw.flag("tie_word_embeddings", True), rope=read_rope(raw, theta=2e6), windows=windows,
        unrotated=tuple(not turns for turns in rotated),
        qkv_bias=bias, out_bias=bias, mlp_bias=raw.flag("mlp_bias", False),
    )  # fmt: skip


FAMILY = Family("smollm3", "model.", NAMES, read_config, COMPUTED)
