"""Qwen3-Next and Qwen3.5: Gated DeltaNet in three of four layers, gated attention in the others, norms with 1 + weight.

The gate of attention (arXiv:2505.06708) has as many channels as the heads' outputs; the query projection computes both.
"""

from __future__ import annotations

from typing import Any

from ..config import DecoderConfig, Experts
from ..raw_config import RawConfig
from ..rope import read_rope
from .family import Family
from .gated_delta import APART, DELTA, TOGETHER, read_delta, read_delta_layers
from .qwen_moe import EXPERTS
from .standard import COMPUTED, HEAD_NORMS, NAMES, expert_stacks, read_decoder


def _read(raw: RawConfig, model_type: str, **more: Any) -> DecoderConfig:
    raw.fixed("attn_output_gate", True)
    raw.ignore("mamba_ssm_dtype", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings")
    raw.ignore("output_router_logits", "router_aux_loss_coef")
    bias = raw.flag("attention_bias", False)
    return read_decoder(
        raw, model_type, head_dim=raw.integer("head_dim", 256), rope=read_rope(raw, 0.25),
        query_norm="head", norm_offset=1.0, gated_attention=True, qkv_bias=bias, out_bias=bias,
        recurrence=read_delta(raw), recurrent_layers=read_delta_layers(raw), **more,
    )  # fmt: skip


def _sparse(raw: RawConfig, model_type: str, used: int) -> DecoderConfig:
    raw.ignore("intermediate_size")
    dense = set(raw.integers("mlp_only_layers"))
    step, layers = raw.integer("decoder_sparse_step", 1), raw.integer("num_hidden_layers")
    sparse = tuple(layer not in dense and (layer + 1) % step == 0 for layer in range(layers))
    inner = raw.integer("moe_intermediate_size", 512)
    experts = Experts(
        count=raw.integer("num_experts"),
        used=raw.integer("num_experts_per_tok", used),
        intermediate_size=inner,
        normalised=raw.flag("norm_topk_prob", True),
        shared_size=raw.integer("shared_expert_intermediate_size", 512),
    )
    size = inner if all(sparse) else raw.integer("intermediate_size")
    return _read(raw, model_type, experts=experts, sparse_layers=sparse, intermediate_size=size)


_NAMES = {**NAMES, **HEAD_NORMS, **DELTA}
_STACKS = expert_stacks("mlp.experts", "mlp.switch_mlp")
NEXT = Family("qwen3_next", "model.", {**_NAMES, **TOGETHER, **EXPERTS}, lambda raw: _sparse(raw, "qwen3_next", 10), COMPUTED, stacks=_STACKS)  # fmt: skip
DENSE = Family(
    "qwen3_5_text", "model.", {**_NAMES, **APART}, lambda raw: _read(raw, "qwen3_5_text"), COMPUTED
)
MOE = Family("qwen3_5_moe_text", "model.", {**_NAMES, **APART, **EXPERTS}, lambda raw: _sparse(raw, "qwen3_5_moe_text", 8), COMPUTED, stacks=_STACKS)  # fmt: skip
