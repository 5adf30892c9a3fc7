"""GLM-4-0414 and its predecessors (arXiv:2406.12793): half of each head rotated in adjacent pairs, gate and up in one linear.

GLM-4.5 to 4.7 (arXiv:2508.06471): experts routed by sigmoids, with a shared one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..config import DecoderConfig
from ..raw_config import RawConfig
from ..rope import read_rope
from .family import Family
from .routed import ROUTED, read_first_dense, read_routed
from .standard import COMPUTED, HEAD_NORMS, NAMES, expert_stacks, read_decoder


def _reader(model_type: str, **more: Any) -> Callable[[RawConfig], DecoderConfig]:  # config fields
    def read(raw: RawConfig) -> DecoderConfig:
        return read_decoder(
            raw, model_type, norm_eps=raw.number("rms_norm_eps", 1.5625e-7), fused_gate=True,
            qkv_bias=raw.flag("attention_bias", True), head_dim=raw.integer("head_dim", 128),
            rope=replace(read_rope(raw, 0.5), interleaved=True), **more,
        )  # fmt: skip

    return read


def read_moe(raw: RawConfig) -> DecoderConfig:
    raw.ignore("num_nextn_predict_layers", "num_mtp_layers")
    norms = "head" if raw.flag("use_qk_norm", False) else None
    return read_routed(
        raw, "glm4_moe", sparse=read_first_dense(raw, 1), shared=raw.integer("n_shared_experts", 1),
        norm_eps=raw.number("rms_norm_eps", 1e-5), query_norm=norms, rope=read_rope(raw, 0.5),
        qkv_bias=raw.flag("attention_bias", False),
    )  # fmt: skip


_FUSED = {**NAMES, "gate_up": "model.layers.{}.mlp.gate_up_proj"}
_AROUND = {
    "attn_post_norm": "model.layers.{}.post_self_attn_layernorm",
    "mlp_post_norm": "model.layers.{}.post_mlp_layernorm",
}
GLM = Family("glm", "model.", _FUSED, _reader("glm"), COMPUTED)
GLM4 = Family("glm4", "model.", {**_FUSED, **_AROUND}, _reader("glm4", norms="around"), COMPUTED)
GLM4_MOE = Family(
    "glm4_moe", "model.", {**NAMES, **HEAD_NORMS, **ROUTED}, read_moe, COMPUTED,
    stacks=expert_stacks("mlp.experts", "mlp.switch_mlp"),
)  # fmt: skip
