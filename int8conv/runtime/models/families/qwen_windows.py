"""Shared by Qwen2 and Qwen3, dense or with experts: windows, and config keys."""

from __future__ import annotations

from typing import Any

from ..config import DecoderConfig
from ..raw_config import RawConfig
from .standard import read_decoder, read_windows


def _windows(raw: RawConfig) -> tuple[int | None, ...]:
    """Windows of the layers from ``max_window_layers`` on, if used at all."""
    if not raw.flag("use_sliding_window", False):
        raw.ignore("sliding_window", "max_window_layers", "layer_types")
        return ()
    first = raw.values.get("max_window_layers")
    raw.ignore("max_window_layers")
    windows = read_windows(raw)
    if raw.values.get("layer_types") is None and type(first) is int:
        return tuple(None if layer < first else size for layer, size in enumerate(windows))
    return windows


def read_qwen(raw: RawConfig, model_type: str, **more: Any) -> DecoderConfig:  # fields of it
    return read_decoder(raw, model_type, windows=_windows(raw), **more)
