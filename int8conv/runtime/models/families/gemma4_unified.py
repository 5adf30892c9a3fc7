"""Gemma 4 "unified": Gemma 4's text without embeddings for each layer and without experts."""

from __future__ import annotations

from ..config import DecoderConfig
from ..raw_config import RawConfig
from .family import Family
from .gemma4_like import SCALED, read_gemma4_like
from .shared_keys import SHARED_NAMES
from .standard import COMPUTED


def read_unified(raw: RawConfig) -> DecoderConfig:
    return read_gemma4_like(raw, "gemma4_unified_text")


_PLAIN = {role: name for role, name in SHARED_NAMES.items() if not role.startswith("input_")} | SCALED  # fmt: skip
FAMILY = Family("gemma4_unified_text", "model.", _PLAIN, read_unified, COMPUTED)
