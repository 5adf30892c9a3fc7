"""Phi-1.5 and Phi-2 (arXiv:2309.05463): one LayerNorm for a parallel block, part of each head rotated.

Phi-3 (arXiv:2404.14219): Llama with fused linears, a window, and long contexts with LongRoPE.
"""

from __future__ import annotations

from ..config import ACTIVATIONS, DecoderConfig
from ..raw_config import RawConfig
from ..rope import read_rope
from .family import Family
from .standard import COMPUTED, NAMES, read_decoder, read_windows


def read_phi(raw: RawConfig) -> DecoderConfig:
    raw.fixed("qk_layernorm", False)
    return read_decoder(
        raw, "phi",
        norm="layer", norm_eps=raw.number("layer_norm_eps", 1e-5), gated=False, parallel=True,
        activation=raw.choice("hidden_act", ACTIVATIONS, "gelu_new"), rope=read_rope(raw, 0.5),
        qkv_bias=True, out_bias=True, mlp_bias=True, head_bias=True,
    )  # fmt: skip


def read_phi3(raw: RawConfig) -> DecoderConfig:
    rope = read_rope(raw, 1.0)
    raw.ignore("original_max_position_embeddings")
    return read_decoder(
        raw, "phi3",
        norm_eps=raw.number("rms_norm_eps", 1e-5), rope=rope, windows=read_windows(raw),
        fused_qkv="rows", fused_gate=True,
    )  # fmt: skip


PHI = Family(
    "phi",
    "model.",
    {
        **{role: name for role, name in NAMES.items() if role not in ("gate", "mlp_norm")},
        "o": "model.layers.{}.self_attn.dense",
        "up": "model.layers.{}.mlp.fc1",
        "down": "model.layers.{}.mlp.fc2",
        "final_norm": "model.final_layernorm",
    },
    read_phi,
    COMPUTED,
)
PHI3 = Family(
    "phi3",
    "model.",
    {
        **NAMES,
        "qkv": "model.layers.{}.self_attn.qkv_proj",
        "gate_up": "model.layers.{}.mlp.gate_up_proj",
    },
    read_phi3,
    COMPUTED,
)
