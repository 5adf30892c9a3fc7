"""Qwen2 (arXiv:2407.10671): biases of q, k and v. Qwen3 (arXiv:2505.09388): norms of heads instead."""

from __future__ import annotations

from ..config import DecoderConfig
from ..raw_config import RawConfig
from .family import Family
from .qwen_windows import read_qwen
from .standard import COMPUTED, HEAD_NORMS, NAMES


def read_qwen2(raw: RawConfig) -> DecoderConfig:
    return read_qwen(raw, "qwen2", qkv_bias=True)


def read_qwen3(raw: RawConfig) -> DecoderConfig:
    bias = raw.flag("attention_bias", False)
    size = raw.integer("head_dim", 128)
    return read_qwen(raw, "qwen3", query_norm="head", head_dim=size, qkv_bias=bias, out_bias=bias)


QWEN2 = Family("qwen2", "model.", NAMES, read_qwen2, COMPUTED)
QWEN3 = Family("qwen3", "model.", {**NAMES, **HEAD_NORMS}, read_qwen3, COMPUTED)
