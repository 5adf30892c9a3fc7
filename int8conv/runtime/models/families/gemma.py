"""Gemma (arXiv:2403.08295): scaled embeddings, norms with 1 + weight. Gemma 2 (arXiv:2408.00118): norms around both
parts of a block, soft caps, a window in every other layer.
"""

from __future__ import annotations

from ..config import DecoderConfig
from ..raw_config import RawConfig
from .family import Family
from .gemma_like import AROUND, read_around, read_like_gemma
from .standard import COMPUTED, NAMES, read_windows


def read_gemma(raw: RawConfig) -> DecoderConfig:
    if (
        raw.values.get("hidden_activation") is None
    ):  # in the first release, "gelu" also meant its approximation
        exact = raw.values.get("hidden_act") in ("gelu", None)
        raw.ignore("hidden_act")
        if exact:
            return read_like_gemma(raw, "gemma", "hidden_activation")
        return read_like_gemma(raw, "gemma", "hidden_act")
    raw.ignore("hidden_act")
    return read_like_gemma(raw, "gemma", "hidden_activation")


def read_gemma2(raw: RawConfig) -> DecoderConfig:
    windows = read_windows(raw, 4096)
    if raw.values.get("layer_types") is None:
        windows = tuple(None if layer % 2 else size for layer, size in enumerate(windows))
    raw.ignore("cache_implementation", "hidden_act")
    return read_around(raw, "gemma2", windows)


GEMMA = Family("gemma", "model.", NAMES, read_gemma, COMPUTED)
GEMMA2 = Family("gemma2", "model.", AROUND, read_gemma2, COMPUTED)
