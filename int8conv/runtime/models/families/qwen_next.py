"""Qwen3-Next and Qwen3.5: Gated DeltaNet in three of four layers, gated attention in the others, norms with 1 + weight.

The gate of attention (arXiv:2505.06708) has as many channels as the heads' outputs; the query projection computes both.
"""

from __future__ import annotations

from typing import Any

from ..config import DecoderConfig, Experts, RawConfig
from ..recurrence import Delta
from ..rope import read_rope
from .family import Family
from .qwen import EXPERTS
from .standard import COMPUTED, HEAD_NORMS, NAMES, expert_stacks, read_decoder

_MIXER = "model.layers.{}.linear_attn."
_DELTA = {
    "delta_conv": f"{_MIXER}conv1d",
    "delta_a_log": f"{_MIXER}A_log",
    "delta_dt_bias": f"{_MIXER}dt_bias",
    "delta_norm": f"{_MIXER}norm",
    "delta_out": f"{_MIXER}out_proj",
}
_APART = {f"delta_{role}": f"{_MIXER}in_proj_{role}" for role in ("qkv", "z", "b", "a")}
_TOGETHER = {f"delta_{role}": f"{_MIXER}in_proj_{role}" for role in ("qkvz", "ba")}


def _layers(raw: RawConfig) -> tuple[bool, ...]:
    layers, every = raw.integer("num_hidden_layers"), raw.integer("full_attention_interval", 4)
    kinds = raw.strings("layer_types")
    if kinds is None:
        return tuple((layer + 1) % every != 0 for layer in range(layers))
    for kind in kinds:
        if kind not in ("linear_attention", "full_attention"):
            raise raw.unsupported("layer_types", kind, "linear_attention or full_attention")
    return tuple(kind == "linear_attention" for kind in kinds)


def _read(raw: RawConfig, model_type: str, **more: Any) -> DecoderConfig:
    raw.fixed("attn_output_gate", True)
    raw.ignore(
        "mamba_ssm_dtype",
        "mtp_num_hidden_layers",
        "mtp_use_dedicated_embeddings",
        "output_router_logits",
    )
    raw.ignore("router_aux_loss_coef")
    bias = raw.flag("attention_bias", False)
    delta = Delta(
        key_heads=raw.integer("linear_num_key_heads", 16),
        value_heads=raw.integer("linear_num_value_heads", 32),
        key_size=raw.integer("linear_key_head_dim", 128),
        value_size=raw.integer("linear_value_head_dim", 128),
        kernel=raw.integer("linear_conv_kernel_dim", 4),
    )
    return read_decoder(
        raw, model_type, head_dim=raw.integer("head_dim", 256), rope=read_rope(raw, 0.25),
        query_norm="head", norm_offset=1.0, gated_attention=True, qkv_bias=bias, out_bias=bias,
        delta=delta, delta_layers=_layers(raw), **more,
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


def read_next(raw: RawConfig) -> DecoderConfig:
    return _sparse(raw, "qwen3_next", 10)


def read_dense(raw: RawConfig) -> DecoderConfig:
    return _read(raw, "qwen3_5_text")


def read_moe(raw: RawConfig) -> DecoderConfig:
    return _sparse(raw, "qwen3_5_moe_text", 8)


_NAMES = {**NAMES, **HEAD_NORMS, **_DELTA}
_STACKS = expert_stacks("mlp.experts", "mlp.switch_mlp")
NEXT = Family("qwen3_next", "model.", {**_NAMES, **_TOGETHER, **EXPERTS}, read_next, COMPUTED, stacks=_STACKS)  # fmt: skip
DENSE = Family("qwen3_5_text", "model.", {**_NAMES, **_APART}, read_dense, COMPUTED)
MOE = Family("qwen3_5_moe_text", "model.", {**_NAMES, **_APART, **EXPERTS}, read_moe, COMPUTED, stacks=_STACKS)  # fmt: skip
