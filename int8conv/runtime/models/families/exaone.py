"""EXAONE 4 (arXiv:2507.11407): norms of heads, norms after attention and FFN; layers without a window rotate nothing.

EXAONE MoE: norms before instead, and experts routed as in DeepSeek-V3.
"""

from __future__ import annotations

from typing import Any

from ..config import DecoderConfig
from ..raw_config import RawConfig
from .family import Family
from .routed import ROUTED, read_first_dense, read_routed
from .standard import (
    COMPUTED,
    HEAD_NORMS,
    NAMES,
    POST_NORMS,
    expert_stacks,
    read_decoder,
    read_windows,
)


def _layers(raw: RawConfig) -> dict[str, Any]:
    """Windows, and which layers rotate: those with a window, or all if there are none."""
    raw.ignore("cache_implementation")
    pattern = raw.values.get("sliding_window_pattern", 4)
    raw.ignore("sliding_window_pattern")
    if "sliding_window" in raw.values and not raw.values["sliding_window"]:
        raw.ignore("layer_types", "sliding_window")
        return {}
    windows = read_windows(raw, 4096, every=pattern if type(pattern) is int else 4)
    if not windows:
        windows = (None,) * raw.integer("num_hidden_layers")
    return {"windows": windows, "unrotated": tuple(size is None for size in windows)}


def read_exaone4(raw: RawConfig) -> DecoderConfig:
    return read_decoder(
        raw, "exaone4", norms="after", query_norm="head",
        norm_eps=raw.number("rms_norm_eps", 1e-5), **_layers(raw),
    )  # fmt: skip


def read_exaone_moe(raw: RawConfig) -> DecoderConfig:
    raw.ignore("num_nextn_predict_layers", "is_moe_layer")
    return read_routed(
        raw, "exaone_moe", sparse=read_first_dense(raw, 1), count="num_experts", scale=2.5,
        shared=raw.integer("num_shared_experts", 1), query_norm="head",
        norm_eps=raw.number("rms_norm_eps", 1e-5), **_layers(raw),
    )  # fmt: skip


_BIAS = {"router_bias": "model.layers.{}.mlp.e_score_correction_bias"}
EXAONE4 = Family("exaone4", "model.", {**NAMES, **HEAD_NORMS, **POST_NORMS}, read_exaone4, COMPUTED)
EXAONE_MOE = Family(
    "exaone_moe", "model.", {**NAMES, **HEAD_NORMS, **ROUTED, **_BIAS}, read_exaone_moe, COMPUTED,
    stacks=expert_stacks("mlp.experts", "mlp.switch_mlp"),
)  # fmt: skip
