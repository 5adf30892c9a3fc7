"""Nemotron-H (arXiv:2504.03624) and Nemotron 3: each layer is Mamba 2, attention without rotary positions, an FFN, or experts.

FFN and experts have a squared ReLU and no gate; routing is that of DeepSeek-V3 (``routed``).
"""

from __future__ import annotations

from typing import Final

from ..config import ACTIVATIONS, DecoderConfig, Experts, RawConfig, Rope
from ..recurrence import Mamba
from .family import Family
from .mamba import mamba_names, read_kinds, step_limits
from .standard import COMPUTED, read_decoder

_LETTERS: Final = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
_MIXER: Final = "backbone.layers.{}.mixer."


def _kinds(raw: RawConfig) -> list[str]:
    raw.ignore("num_hidden_layers", "mtp_layers_block_type", "mtp_hybrid_override_pattern")
    pattern = raw.values.get("hybrid_override_pattern")
    raw.ignore("hybrid_override_pattern", "layer_types")
    kinds = read_kinds(raw, "layers_block_type", tuple(_LETTERS.values()))
    if kinds is not None:
        return kinds
    if not isinstance(pattern, str) or not pattern or not set(pattern) <= set(_LETTERS):
        expected = f"a string of {' '.join(_LETTERS)}"
        raise raw.unsupported("hybrid_override_pattern", pattern, expected)
    return [_LETTERS[letter] for letter in pattern]


def _mamba(raw: RawConfig) -> Mamba:
    raw.ignore("chunk_size", "expand", "use_mamba_kernels", "mamba_ssm_cache_dtype", "mamba_proj_bias")  # fmt: skip
    raw.ignore("time_step_max", "time_step_floor", "time_step_rank")
    raw.fixed("mamba_hidden_act", "silu")
    bias, limits = raw.flag("use_bias", False), step_limits(raw)
    return Mamba(
        value_heads=raw.integer("mamba_num_heads", 128),
        head_size=raw.integer("mamba_head_dim", 64),
        groups=raw.integer("n_groups", 8),
        state_size=raw.integer("ssm_state_size", 128),
        kernel=raw.integer("conv_kernel", 4),
        norm="gate first",
        conv_bias=raw.flag("use_conv_bias", True),
        in_bias=bias,
        out_bias=bias,
        step_limits=(max(limits[0], raw.number("time_step_min", 0.001)), limits[1]),
    )


def _experts(raw: RawConfig) -> Experts:
    raw.ignore("output_router_logits", "moe_shared_expert_overlap", "n_shared_experts")
    raw.fixed("moe_latent_size", None)
    return Experts(
        count=raw.integer("n_routed_experts", 8),
        used=raw.integer("num_experts_per_tok", 2),
        intermediate_size=raw.integer("moe_intermediate_size", 7688),
        normalised=raw.flag("norm_topk_prob", True),
        shared_size=raw.integer("moe_shared_expert_intermediate_size", 7688),
        shared_gated=False,
        scoring="sigmoid",
        biased=True,
        groups=raw.integer("n_group", 1),
        groups_used=raw.integer("topk_group", 1),
        scale=raw.number("routed_scaling_factor", 1.0),
    )


def read_config(raw: RawConfig) -> DecoderConfig:
    raw.ignore("residual_in_fp32", "rescale_prenorm_residual", "num_logits_to_keep", "num_nextn_predict_layers", "attention_bias")  # fmt: skip
    raw.fixed("sliding_window", None)
    kinds = _kinds(raw)
    experts, mamba = _experts(raw), _mamba(raw)
    return read_decoder(
        raw, "nemotron_h", num_layers=len(kinds), num_kv_heads=raw.integer("num_key_value_heads", 8),
        head_dim=raw.integer("head_dim", 128), norm_eps=raw.number("layer_norm_epsilon", 1e-5), gated=False,
        activation=raw.choice("mlp_hidden_act", ACTIVATIONS, "relu2"), mlp_bias=raw.flag("mlp_bias", False),
        rope=Rope(1e4), unrotated=(True,) * len(kinds),
        recurrence=mamba, recurrent_layers=tuple(kind == "mamba" for kind in kinds),
        attention_layers=tuple(kind == "attention" for kind in kinds),
        ffn_layers=tuple(kind in ("mlp", "moe") for kind in kinds),
        experts=experts if "moe" in kinds else None, sparse_layers=tuple(kind == "moe" for kind in kinds),
    )  # fmt: skip


_ROLES = {
    **{role: f"{role}_proj" for role in ("q", "k", "v", "o", "up", "down")},
    "router": "gate",
    "router_bias": "gate.e_score_correction_bias",
    "expert_up": "experts.{}.up_proj",
    "expert_down": "experts.{}.down_proj",
    "shared_up": "shared_experts.up_proj",
    "shared_down": "shared_experts.down_proj",
}
FAMILY = Family(
    "nemotron_h", "backbone.",
    {
        "embed": "backbone.embeddings",
        "attn_norm": "backbone.layers.{}.norm",
        "mlp_norm": "backbone.layers.{}.norm",
        **{role: _MIXER + name for role, name in _ROLES.items()},
        **mamba_names(_MIXER),
        "final_norm": "backbone.norm_f",
        "head": "lm_head",
    },
    read_config, COMPUTED,
    stacks={f"{_MIXER}experts.{role}_proj": (role,) for role in ("up", "down")},
)  # fmt: skip
