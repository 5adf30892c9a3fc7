"""GLM-5 (arXiv:2602.15763): DeepSeek-V3 with an indexer, which some layers share; equal to plain latent attention up to ``index_topk``
positions, and longer contexts are refused.
"""

from __future__ import annotations

from dataclasses import replace

from ..config import DecoderConfig
from ..raw_config import RawConfig
from .deepseek import V3
from .family import Family
from .latent import read_latent
from .routed import read_first_dense, read_routed
from .standard import COMPUTED


def read_config(raw: RawConfig) -> DecoderConfig:
    raw.ignore("index_n_heads", "index_head_dim", "layer_types", "indexer_types", "mlp_bias", "index_topk_freq")  # fmt: skip
    raw.ignore("index_skip_topk_offset", "index_topk_pattern", "indexer_rope_interleave", "index_share_for_mtp_iteration")  # fmt: skip
    dense = read_routed(
        raw, "glm_moe_dsa", sparse=read_first_dense(raw, 3), shared=raw.integer("n_shared_experts", 1), scale=2.5,
        norm_eps=raw.number("rms_norm_eps", 1e-5), **read_latent(raw),
    )  # fmt: skip
    positions = min(dense.max_positions, raw.integer("index_topk", 2048))
    return replace(dense, max_positions=positions, indexed=True)


FAMILY = Family("glm_moe_dsa", "model.", V3.names, read_config, COMPUTED, stacks=V3.stacks)
