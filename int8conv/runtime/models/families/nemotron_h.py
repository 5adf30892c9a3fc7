"""Nemotron-H (arXiv:2504.03624) and Nemotron 3: each layer is Mamba 2, attention without rotary positions, an FFN, or experts.

FFN and experts have a squared ReLU and no gate; experts are routed as in DeepSeek-V3.
"""

from __future__ import annotations

from ..config import ACTIVATIONS, DecoderConfig, Rope
from ..raw_config import RawConfig
from .family import Family
from .mamba import mamba_names, read_kinds, read_nemotron_mamba
from .routed import routed_experts
from .standard import COMPUTED, read_decoder

_LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
_MIXER = "backbone.layers.{}.mixer."
_ROLES = {
    **{role: f"{role}_proj" for role in ("q", "k", "v", "o", "up", "down")},
    **{f"expert_{role}": f"experts.{{}}.{role}_proj" for role in ("up", "down")},
    **{f"shared_{role}": f"shared_experts.{role}_proj" for role in ("up", "down")},
    "router": "gate", "router_bias": "gate.e_score_correction_bias",
}  # fmt: skip


def _kinds(raw: RawConfig) -> list[str]:
    raw.ignore("num_hidden_layers", "hybrid_override_pattern", "layer_types")
    if (kinds := read_kinds(raw, "layers_block_type", tuple(_LETTERS.values()))) is not None:
        return kinds
    pattern = raw.values.get("hybrid_override_pattern")
    if not isinstance(pattern, str) or not pattern or not set(pattern) <= set(_LETTERS):
        raise raw.unsupported("hybrid_override_pattern", pattern, f"a string of {' '.join(_LETTERS)}")  # fmt: skip
    return [_LETTERS[letter] for letter in pattern]


def read_config(raw: RawConfig) -> DecoderConfig:
    raw.ignore("residual_in_fp32", "rescale_prenorm_residual", "num_logits_to_keep", "num_nextn_predict_layers", "attention_bias")  # fmt: skip
    raw.ignore("output_router_logits", "moe_shared_expert_overlap", "n_shared_experts", "mtp_layers_block_type")  # fmt: skip
    for key in ("sliding_window", "moe_latent_size"):
        raw.fixed(key, None)
    kinds, shared = _kinds(raw), raw.integer("moe_shared_expert_intermediate_size", 7688)
    experts = routed_experts(raw, raw.integer("moe_intermediate_size", 7688), shared) if "moe" in kinds else None  # fmt: skip
    if experts is not None:  # theirs have no biases, and the shared one would have them
        raw.fixed("mlp_bias", False)
    raw.ignore("n_routed_experts", "num_experts_per_tok", "norm_topk_prob", "n_group", "topk_group", "routed_scaling_factor")  # fmt: skip
    return read_decoder(
        raw, "nemotron_h", num_layers=len(kinds), num_kv_heads=raw.integer("num_key_value_heads", 8),
        head_dim=raw.integer("head_dim", 128), norm_eps=raw.number("layer_norm_epsilon", 1e-5), gated=False,
        activation=raw.choice("mlp_hidden_act", ACTIVATIONS, "relu2"), mlp_bias=raw.flag("mlp_bias", False),
        rope=Rope(1e4), unrotated=(True,) * len(kinds), recurrence=read_nemotron_mamba(raw),
        recurrent_layers=tuple(kind == "mamba" for kind in kinds),
        attention_layers=tuple(kind == "attention" for kind in kinds), ffn_layers=tuple(kind in ("mlp", "moe") for kind in kinds),
        experts=experts, sparse_layers=tuple(kind == "moe" for kind in kinds),
    )  # fmt: skip


_NORMS = dict.fromkeys(("attn_norm", "mlp_norm"), "backbone.layers.{}.norm")
_OUTSIDE = {"embed": "backbone.embeddings", "final_norm": "backbone.norm_f", "head": "lm_head"}
_NAMES = {**_OUTSIDE, **_NORMS, **{role: _MIXER + name for role, name in _ROLES.items()}, **mamba_names(_MIXER)}  # fmt: skip
_STACKS = {f"{_MIXER}experts.{role}_proj": (role,) for role in ("up", "down")}
FAMILY = Family("nemotron_h", "backbone.", _NAMES, read_config, COMPUTED, stacks=_STACKS)
