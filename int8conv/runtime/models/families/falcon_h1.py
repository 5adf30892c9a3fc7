"""Falcon-H1 (arXiv:2507.22448): Mamba 2 and attention side by side in every layer, and multipliers.

The multipliers of attention's input and keys become part of its scale; that of its values, of the scale of its output.
"""

from __future__ import annotations

from typing import Literal

from ..config import DecoderConfig
from ..raw_config import RawConfig
from .bamba import HYBRID_NAMES
from .family import Family
from .mamba import read_mamba
from .standard import COMPUTED, read_decoder


def _multipliers(raw: RawConfig, key: str, count: int) -> list[float]:
    values = raw.values.get(key)
    raw.ignore(key)
    if values is not None and (not isinstance(values, list) or len(values) != count):
        raise raw.unsupported(key, values, f"{count} numbers")
    return [1.0] * count if values is None else [raw.positive(key, value) for value in values]


def read_config(raw: RawConfig) -> DecoderConfig:
    raw.ignore("num_logits_to_keep", "layers_block_type", "mamba_use_mlp")
    raw.fixed("attention_bias", False)
    raw.fixed("mamba_proj_bias", False)
    order: Literal["gate first", "norm first"]
    order = "norm first" if raw.flag("mamba_norm_before_gate", True) else "gate first"
    norm = order if raw.flag("mamba_rms_norm", False) else None
    before = raw.number("ssm_in_multiplier", 1.0)
    mamba = read_mamba(
        raw, norm, raw.integer("mamba_d_ssm", 1024), out_bias=raw.flag("projectors_bias", False),
        scales=tuple(before * each for each in _multipliers(raw, "ssm_multipliers", 5)),
    )  # fmt: skip
    size = raw.optional_integer("head_dim") or raw.size_per_head("hidden_size", "num_attention_heads")  # fmt: skip
    inside, gate_and_down = raw.number("attention_in_multiplier", 1.0), _multipliers(raw, "mlp_multipliers", 2)  # fmt: skip
    every = (True,) * raw.integer("num_hidden_layers")
    return read_decoder(
        raw, "falcon_h1", head_dim=size, num_kv_heads=raw.integer("num_key_value_heads", 8),
        norm_eps=raw.number("rms_norm_eps", 1e-5), mlp_bias=raw.flag("mlp_bias", False),
        recurrence=mamba, recurrent_layers=every, attention_layers=every,
        attention_scale=size**-0.5 * inside**2 * raw.number("key_multiplier", 1.0),
        attention_out_scale=inside * raw.number("attention_out_multiplier", 1.0),
        recurrence_scale=raw.number("ssm_out_multiplier", 1.0),
        gate_scale=gate_and_down[0], ffn_scale=gate_and_down[1],
        embedding_scale=raw.number("embedding_multiplier", 1.0),
        logit_scale=raw.number("lm_head_multiplier", 1.0),
    )  # fmt: skip


FAMILY = Family("falcon_h1", "model.", HYBRID_NAMES, read_config, COMPUTED)
