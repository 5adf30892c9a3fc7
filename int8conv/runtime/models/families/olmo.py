"""OLMo 2 (arXiv:2501.00656): norms after attention and FFN, and of queries and keys over all heads.

OLMo 3: OLMo 2 with a window in three of four layers, which have their own rotary embedding.
"""

from __future__ import annotations

from typing import Any

from ..config import DecoderConfig, Rope
from ..raw_config import RawConfig
from ..rope import read_layer_ropes, read_rope
from .family import Family
from .standard import COMPUTED, HEAD_NORMS, NAMES, POST_NORMS, read_decoder, read_windows


def _read(raw: RawConfig, model_type: str, **more: Any) -> DecoderConfig:
    bias = raw.flag("attention_bias", False)
    return read_decoder(
        raw, model_type,
        norm_eps=raw.number("rms_norm_eps", 1e-5), norms="after", query_norm="row",
        qkv_bias=bias, out_bias=bias, **more,
    )  # fmt: skip


def read_olmo2(raw: RawConfig) -> DecoderConfig:
    return _read(raw, "olmo2")


def read_olmo3(raw: RawConfig) -> DecoderConfig:
    ropes = read_layer_ropes(raw, (5e5, 5e5))
    if ropes is None:  # only layers without a window are scaled for long contexts
        rope = read_rope(raw, theta=5e5)
        ropes = rope, Rope(rope.theta)
    windows = read_windows(raw, 4096, every=4)
    return _read(raw, "olmo3", windows=windows, rope=ropes[0], local_rope=ropes[1])


_AFTER = {**NAMES, **HEAD_NORMS, **POST_NORMS}
OLMO2 = Family("olmo2", "model.", _AFTER, read_olmo2, COMPUTED)
OLMO3 = Family("olmo3", "model.", _AFTER, read_olmo3, COMPUTED)
