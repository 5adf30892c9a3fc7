"""Mistral (arXiv:2310.06825): Llama with a sliding window."""

from __future__ import annotations

from ..config import DecoderConfig
from ..raw_config import RawConfig
from .family import Family
from .standard import COMPUTED, NAMES, read_decoder, read_windows


def read_config(raw: RawConfig) -> DecoderConfig:
    return read_decoder(raw, "mistral", windows=read_windows(raw))


FAMILY = Family("mistral", "model.", NAMES, read_config, COMPUTED)
