"""Apertus (arXiv:2509.14233): an FFN without a gate whose activation function xIELU is learned; norms of queries and keys."""

from __future__ import annotations

from ..config import DecoderConfig, Rope
from ..raw_config import RawConfig
from ..rope import read_rope
from .family import Family
from .standard import COMPUTED, HEAD_NORMS, PLAIN_NAMES, read_decoder

_ROPE = Rope(1.2e7, "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_positions=8192.0)  # fmt: skip


def read_config(raw: RawConfig) -> DecoderConfig:
    bias = raw.flag("attention_bias", False)
    raw.fixed("hidden_act", "xielu")
    raw.fixed("qk_norm", True)
    raw.fixed("post_norm", False)
    raw.ignore("mlp_bias")
    given = any(raw.values.get(key) is not None for key in ("rope_parameters", "rope_scaling", "rope_theta"))  # fmt: skip
    return read_decoder(
        raw, "apertus", gated=False, activation="xielu", query_norm="head", norm_eps=raw.number("rms_norm_eps", 1e-5),
        qkv_bias=bias, out_bias=bias, rope=read_rope(raw, theta=1.2e7) if given else _ROPE,
    )  # fmt: skip


_FFN = "model.layers.{}.mlp.act_fn."
FAMILY = Family(
    "apertus",
    "model.",
    {
        **PLAIN_NAMES,
        **HEAD_NORMS,
        "attn_norm": "model.layers.{}.attention_layernorm",
        "mlp_norm": "model.layers.{}.feedforward_layernorm",
        "xielu_rising": f"{_FFN}alpha_p",
        "xielu_falling": f"{_FFN}alpha_n",
        "xielu_beta": f"{_FFN}beta",
        "xielu_eps": f"{_FFN}eps",
    },
    read_config,
    COMPUTED,
)
