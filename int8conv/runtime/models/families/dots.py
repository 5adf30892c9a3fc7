"""dots.llm1 (arXiv:2506.05767): norms of heads, and experts routed as in DeepSeek-V3."""

from __future__ import annotations

from ..config import DecoderConfig
from ..raw_config import RawConfig
from .family import Family
from .routed import ROUTED, read_first_dense, read_routed
from .standard import COMPUTED, HEAD_NORMS, NAMES, expert_stacks, read_windows


def _windows(raw: RawConfig) -> tuple[int | None, ...]:
    """Layers from ``max_window_layers`` on have a window, if there are any."""
    first = raw.values.get("max_window_layers")
    raw.ignore("max_window_layers")
    windows = read_windows(raw)
    if raw.values.get("layer_types") is not None:
        return windows
    first = first if type(first) is int else 62
    found = tuple(None if layer < first else size for layer, size in enumerate(windows))
    return found if any(found) else ()


def read_config(raw: RawConfig) -> DecoderConfig:
    bias = raw.flag("attention_bias", False)
    return read_routed(
        raw, "dots1", sparse=read_first_dense(raw, 0), normalised=False,
        shared=raw.optional_integer("n_shared_experts") or 0, windows=_windows(raw),
        query_norm="head", qkv_bias=bias, out_bias=bias,
    )  # fmt: skip


FAMILY = Family(
    "dots1", "model.", {**NAMES, **HEAD_NORMS, **ROUTED}, read_config, COMPUTED,
    stacks=expert_stacks("mlp.experts", "mlp.switch_mlp"),
)  # fmt: skip
