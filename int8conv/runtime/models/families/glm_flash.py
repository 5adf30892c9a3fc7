"""GLM-4.7-Flash: GLM-4.5's experts (arXiv:2508.06471) with latent attention in place of its own."""

from __future__ import annotations

from ..config import DecoderConfig
from ..raw_config import RawConfig
from .family import Family
from .latent import LATENT_NAMES, read_latent
from .routed import ROUTED, read_first_dense, read_routed
from .standard import COMPUTED, expert_stacks


def read_config(raw: RawConfig) -> DecoderConfig:
    return read_routed(
        raw, "glm4_moe_lite", sparse=read_first_dense(raw, 1), shared=raw.integer("n_shared_experts", 1),
        scale=1.8, norm_eps=raw.number("rms_norm_eps", 1e-5), **read_latent(raw, 1.0),
    )  # fmt: skip


FAMILY = Family(
    "glm4_moe_lite", "model.", {**LATENT_NAMES, **ROUTED}, read_config, COMPUTED,
    stacks=expert_stacks("mlp.experts", "mlp.switch_mlp"),
)  # fmt: skip
