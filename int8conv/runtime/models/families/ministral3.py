"""Ministral 3 and Devstral 2: Mistral with YaRN, and queries that grow with their position beyond the original context.

q <- q (1 + beta log(1 + floor(position / original positions)))      (as in Llama 4)
"""

from __future__ import annotations

from ..config import DecoderConfig
from ..raw_config import RawConfig
from ..rope import read_rope
from .family import Family
from .standard import COMPUTED, NAMES, read_decoder, read_windows

_BETA = "llama_4_scaling_beta"


def read_config(raw: RawConfig) -> DecoderConfig:
    sections = [raw.values.get(key) for key in ("rope_parameters", "rope_scaling")]
    beta = next((s.get(_BETA) for s in sections if isinstance(s, dict) and _BETA in s), None)
    rope = read_rope(raw, theta=1e6, ignored=(_BETA, "max_position_embeddings"))
    growth = 0.0 if not beta else raw.positive(f"rope_parameters.{_BETA}", beta, most=100.0)
    if growth and rope.original_positions <= 1:
        raise raw.unsupported(f"rope_parameters.{_BETA}", beta, "original_max_position_embeddings")
    return read_decoder(
        raw, "ministral3",
        norm_eps=raw.number("rms_norm_eps", 1e-5), rope=rope, query_growth=growth,
        head_dim=raw.integer("head_dim", 128), windows=read_windows(raw),
    )  # fmt: skip


FAMILY = Family("ministral3", "model.", NAMES, read_config, COMPUTED)
