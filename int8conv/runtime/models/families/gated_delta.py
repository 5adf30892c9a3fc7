"""Shared by families with Gated DeltaNet: keys of its sizes, names of its modules, and which layers have it."""

from __future__ import annotations

from typing import Final

from ..raw_config import RawConfig
from ..recurrence import Delta

_MIXER: Final = "model.layers.{}.linear_attn."
DELTA: Final = {
    "delta_conv": f"{_MIXER}conv1d",
    "delta_a_log": f"{_MIXER}A_log",
    "delta_dt_bias": f"{_MIXER}dt_bias",
    "delta_norm": f"{_MIXER}norm",
    "delta_out": f"{_MIXER}out_proj",
}
APART: Final = {f"delta_{role}": f"{_MIXER}in_proj_{role}" for role in ("qkv", "z", "b", "a")}
"""First linears of Qwen3.5."""
TOGETHER: Final = {f"delta_{role}": f"{_MIXER}in_proj_{role}" for role in ("qkvz", "ba")}
"""First linears of Qwen3-Next."""


def read_delta(raw: RawConfig) -> Delta:
    return Delta(
        key_heads=raw.integer("linear_num_key_heads", 16),
        value_heads=raw.integer("linear_num_value_heads", 32),
        key_size=raw.integer("linear_key_head_dim", 128),
        value_size=raw.integer("linear_value_head_dim", 128),
        kernel=raw.integer("linear_conv_kernel_dim", 4),
    )


def read_delta_layers(raw: RawConfig) -> tuple[bool, ...]:
    """Those that ``layer_types`` names; without it, all but each fourth or so."""
    layers, every = raw.integer("num_hidden_layers"), raw.integer("full_attention_interval", 4)
    kinds = raw.strings("layer_types")
    if kinds is None:
        return tuple((layer + 1) % every != 0 for layer in range(layers))
    for kind in kinds:
        if kind not in ("linear_attention", "full_attention"):
            raise raw.unsupported("layer_types", kind, "linear_attention or full_attention")
    return tuple(kind == "linear_attention" for kind in kinds)
