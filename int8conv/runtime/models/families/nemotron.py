"""Nemotron (arXiv:2402.16819), Arcee and Jais 2: an FFN with a squared ReLU (arXiv:2109.08668) and no gate.

Nemotron's LayerNorms have 1 + weight, and it rotates half of each head.
"""

from __future__ import annotations

from typing import Any

from ..config import ACTIVATIONS, DecoderConfig
from ..raw_config import RawConfig
from ..rope import read_rope
from .family import Family
from .standard import COMPUTED, PLAIN_NAMES, read_decoder


def _read(raw: RawConfig, model_type: str, eps: str, bias: bool, **more: Any) -> DecoderConfig:
    attention_bias = raw.flag("attention_bias", bias)
    return read_decoder(
        raw, model_type, gated=False, norm_eps=raw.number(eps, 1e-5),
        activation=raw.choice("hidden_act", ACTIVATIONS, "relu2"),
        qkv_bias=attention_bias, out_bias=attention_bias, mlp_bias=raw.flag("mlp_bias", bias), **more,
    )  # fmt: skip


def read_arcee(raw: RawConfig) -> DecoderConfig:
    return _read(raw, "arcee", "rms_norm_eps", bias=False)


def read_jais2(raw: RawConfig) -> DecoderConfig:
    return _read(raw, "jais2", "layer_norm_eps", bias=True, norm="layer")


def read_nemotron(raw: RawConfig) -> DecoderConfig:
    rope = read_rope(raw, 0.5)
    return _read(raw, "nemotron", "norm_eps", False, norm="layer", norm_offset=1.0, rope=rope)


ARCEE = Family("arcee", "model.", PLAIN_NAMES, read_arcee, COMPUTED)
JAIS2 = Family("jais2", "model.", PLAIN_NAMES, read_jais2, COMPUTED)
NEMOTRON = Family("nemotron", "model.", PLAIN_NAMES, read_nemotron, COMPUTED)
