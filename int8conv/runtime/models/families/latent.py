"""Shared by families with multi-head latent attention (arXiv:2405.04434, section 2.1): keys and names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from ..latent import Latent
from ..raw_config import RawConfig
from ..rope import read_rope
from .standard import NAMES

_ATTENTION = "model.layers.{}.self_attn."
LATENT_NAMES: Final = {
    **{role: name for role, name in NAMES.items() if role not in ("k", "v")},
    "q_a": f"{_ATTENTION}q_a_proj",
    "q_a_norm": f"{_ATTENTION}q_a_layernorm",
    "q_b": f"{_ATTENTION}q_b_proj",
    "kv_a": f"{_ATTENTION}kv_a_proj_with_mqa",
    "kv_a_norm": f"{_ATTENTION}kv_a_layernorm",
    "kv_b": f"{_ATTENTION}kv_b_proj",
}


def read_latent(
    raw: RawConfig, fraction: float | None = None
) -> Mapping[str, Any]:  # fields of the config
    """The fields of such attention; ``fraction`` as for ``read_rope``."""
    raw.ignore("num_key_value_heads", "head_dim", "qk_head_dim", "num_nextn_predict_layers", "num_mtp_layers")  # fmt: skip
    latent = Latent(
        rank=raw.integer("kv_lora_rank"),
        query_rank=raw.optional_integer("q_lora_rank"),
        plain=raw.integer("qk_nope_head_dim"),
        rotated=raw.integer("qk_rope_head_dim"),
        value=raw.integer("v_head_dim"),
    )
    if latent.query_rank is None:  # the projection of queries has no bias, unlike its sibling
        raw.fixed("attention_bias", False)
    bias = raw.flag("attention_bias", False)
    rope = replace(read_rope(raw, fraction), interleaved=raw.flag("rope_interleave", True))
    return {
        "latent": latent, "rope": rope, "head_dim": latent.rotated, "num_kv_heads": 1, "qkv_bias": bias,
        "out_bias": bias, "attention_scale": _scale(raw, latent),
    }  # fmt: skip


def _scale(raw: RawConfig, latent: Latent) -> float:
    """The scale of scores, which grows with yarn's factor (``mscale_all_dim``; ``read_rope`` has checked both)."""
    scale = 1 / math.sqrt(latent.query)
    for key in ("rope_scaling", "rope_parameters"):
        section = raw.values.get(key) or {}
        if section.get("mscale_all_dim") and section.get("factor", 1) > 1:
            grown: float = 0.1 * section["mscale_all_dim"] * math.log(section["factor"]) + 1
            return scale * grown * grown
    return scale
