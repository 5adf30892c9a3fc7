"""StableLM (arXiv:2402.17834): Llama with LayerNorm, part of each head rotated, parallel blocks in some models."""

from __future__ import annotations

from typing import Any

from ..config import DecoderConfig
from ..raw_config import RawConfig
from ..rope import read_rope
from .family import Family
from .standard import COMPUTED, NAMES, read_decoder


def read_config(raw: RawConfig) -> DecoderConfig:
    raw.fixed("qk_layernorm", False)
    return read_decoder(
        raw, "stablelm",
        norm="layer", norm_eps=raw.number("layer_norm_eps", 1e-5), rope=read_rope(raw, 0.25),
        parallel=raw.flag("use_parallel_residual", False), qkv_bias=raw.flag("use_qkv_bias", False),
    )  # fmt: skip


def names(config: dict[str, Any]) -> dict[str, str]:
    """Parallel blocks have one norm."""
    parallel = config.get("use_parallel_residual") is True
    return {role: name for role, name in NAMES.items() if role != "mlp_norm" or not parallel}


FAMILY = Family("stablelm", "model.", NAMES, read_config, COMPUTED, names)
