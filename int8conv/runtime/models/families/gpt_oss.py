"""gpt-oss (arXiv:2508.10925): attention with sinks, in every other layer within a window; experts with biases and limits.

Gate and up of an expert are one matrix, whose rows alternate between them. In 16 bits the stacks hold ``[in, out]``, in MXFP4
``[out, in]``.
"""

from __future__ import annotations

from ..config import DecoderConfig, Experts
from ..raw_config import RawConfig
from ..rope import read_rope
from .family import Family
from .standard import COMPUTED, NAMES, read_decoder, read_windows

_MOE = "model.layers.{}.mlp."


def read_config(raw: RawConfig) -> DecoderConfig:
    raw.ignore(
        "router_aux_loss_coef", "output_router_logits", "initial_context_length", "experts_per_token",
    )  # fmt: skip
    raw.fixed("hidden_act", "silu")
    bias = raw.flag("attention_bias", True)
    experts = Experts(
        count=raw.integer("num_local_experts", 128),
        used=raw.integer("num_experts_per_tok", 4),
        intermediate_size=raw.integer("intermediate_size"),
        normalised=True,
        router_bias=True,
    )
    return read_decoder(
        raw, "gpt_oss", activation="silu", head_dim=raw.integer("head_dim", 64),
        norm_eps=raw.number("rms_norm_eps", 1e-5), rope=read_rope(raw, theta=150000.0),
        windows=read_windows(raw, 128, every=2), qkv_bias=bias, out_bias=bias, mlp_bias=True, sinks=True,
        experts=experts, fused_gate=True, swiglu_limit=raw.number("swiglu_limit", 7.0),
        swiglu_alpha=raw.number("swiglu_alpha", 1.702),
    )  # fmt: skip


FAMILY = Family(
    "gpt_oss", "model.",
    {
        **{role: name for role, name in NAMES.items() if role not in ("gate", "up", "down")},
        "sinks": "model.layers.{}.self_attn.sinks",
        "router": f"{_MOE}router",
        "expert_gate_up": f"{_MOE}experts.{{}}.gate_up_proj",
        "expert_down": f"{_MOE}experts.{{}}.down_proj",
    },
    read_config, COMPUTED,
    stacks={f"{_MOE}experts.gate_up_proj": ("gate_up",), f"{_MOE}experts.down_proj": ("down",)},
    transposed_stacks=True,
)  # fmt: skip
