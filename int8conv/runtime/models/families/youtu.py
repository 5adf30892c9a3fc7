"""Youtu-LLM: Llama with latent attention (arXiv:2405.04434, section 2.1)."""

from __future__ import annotations

from ..config import DecoderConfig
from ..raw_config import RawConfig
from .family import Family
from .latent import LATENT_NAMES, read_latent
from .standard import COMPUTED, read_decoder


def read_config(raw: RawConfig) -> DecoderConfig:
    raw.ignore("embedding_initializer_range")
    return read_decoder(raw, "youtu", tied=raw.flag("tie_word_embeddings", True), **read_latent(raw))  # fmt: skip


FAMILY = Family("youtu", "model.", LATENT_NAMES, read_config, COMPUTED)
