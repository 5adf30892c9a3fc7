"""Gemma 3 (arXiv:2503.19786): Gemma 2 with norms of heads instead of soft caps, and a separate rotary base for layers with a window."""

from __future__ import annotations

from ..config import DecoderConfig, Rope
from ..raw_config import RawConfig
from ..rope import read_layer_ropes, read_rope
from .family import Family
from .gemma_like import AROUND, read_around
from .standard import COMPUTED, HEAD_NORMS, read_windows


def read_gemma3(raw: RawConfig) -> DecoderConfig:
    windows = read_windows(raw, 4096)
    if raw.values.get("layer_types") is None:
        pattern = raw.integer("sliding_window_pattern", 6)
        windows = tuple(size if (i + 1) % pattern else None for i, size in enumerate(windows))
    raw.ignore("sliding_window_pattern", "cache_implementation")
    rope, local = _ropes(raw)
    return read_around(raw, "gemma3_text", windows, query_norm="head", rope=rope, local_rope=local)


def _ropes(raw: RawConfig) -> tuple[Rope, Rope]:
    """Rotary embeddings of global layers and of layers with a window."""
    if (ropes := read_layer_ropes(raw, (1e6, 1e4))) is not None:
        return ropes
    return read_rope(raw, theta=1e6), Rope(raw.number("rope_local_base_freq", 1e4))


FAMILY = Family("gemma3_text", "model.", {**AROUND, **HEAD_NORMS}, read_gemma3, COMPUTED)
