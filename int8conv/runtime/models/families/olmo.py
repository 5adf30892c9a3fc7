"""OLMo 2 (arXiv:2501.00656): norms after attention and FFN, and of queries and keys over all heads."""

from __future__ import annotations

from ..config import DecoderConfig, RawConfig
from .family import Family
from .standard import COMPUTED, HEAD_NORMS, NAMES, POST_NORMS, read_decoder


def read_config(raw: RawConfig) -> DecoderConfig:
    bias = raw.flag("attention_bias", False)
    return read_decoder(
        raw, "olmo2",
        norm_eps=raw.number("rms_norm_eps", 1e-5), norms="after", query_norm="row",
        qkv_bias=bias, out_bias=bias,
    )  # fmt: skip


FAMILY = Family(
    "olmo2", "model.", {**NAMES, **HEAD_NORMS, **POST_NORMS}, read_config, COMPUTED
)  # fmt: skip
