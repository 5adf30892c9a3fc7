"""Phi-3.5-MoE (arXiv:2404.14219): two experts of a token, chosen one after the other by SparseMixer (arXiv:2409.12136); LayerNorms.

Beyond its original context the long factors of its rotary embedding hold, as in training; transformers 5.23 always takes the short ones.
"""

from __future__ import annotations

from dataclasses import replace

from ..config import DecoderConfig, Experts, Rope
from ..raw_config import RawConfig
from ..rope import read_rope
from .family import Family
from .mixtral import FAMILY as MIXTRAL
from .standard import COMPUTED, read_decoder, read_windows

_MAGNITUDES = ("short_mscale", "long_mscale")


def _rope(raw: RawConfig) -> Rope:
    """Of longrope, whose magnitudes are given; only the same for short and long sequences is supported."""
    rope = read_rope(raw, theta=1e6, ignored=_MAGNITUDES)
    for section in ("rope_scaling", "rope_parameters"):
        values = raw.values.get(section) or {}
        given = {values.get(key) for key in _MAGNITUDES} - {None}
        if len(given) > 1:
            raise raw.unsupported(f"{section}.short_mscale", values.get("short_mscale"), "that of long_mscale")  # fmt: skip
        if given and rope.kind != "default":
            key = f"{section}.{_MAGNITUDES[0]}"
            rope = replace(rope, magnitude=raw.positive(key, given.pop(), most=1e6))
    return rope


def read_config(raw: RawConfig) -> DecoderConfig:
    raw.ignore("router_aux_loss_coef", "output_router_logits", "input_jitter_noise", "original_max_position_embeddings")  # fmt: skip
    raw.fixed("num_experts_per_tok", 2)
    bias = raw.flag("attention_bias", False)
    experts = Experts(
        raw.integer("num_local_experts", 16), 2, raw.integer("intermediate_size"), normalised=False,
        scoring="sparsemixer", jitter=raw.number("router_jitter_noise", 0.01),
    )  # fmt: skip
    return read_decoder(
        raw, "phimoe", norm="layer", norm_eps=raw.number("rms_norm_eps", 1e-5), rope=_rope(raw), experts=experts,
        windows=read_windows(raw), qkv_bias=bias, out_bias=bias, head_bias=raw.flag("lm_head_bias", False),
    )  # fmt: skip


FAMILY = Family(
    "phimoe", "model.", MIXTRAL.names, read_config, COMPUTED, stacks=MIXTRAL.stacks,
    aliases={"model.layers.{}.mlp.router": ("router",)},
)  # fmt: skip
