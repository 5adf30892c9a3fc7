"""Shared by families with Mamba 2: keys of its sizes, names of its modules, and kinds of layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Literal

from ..raw_config import RawConfig
from ..recurrence import Mamba

KINDS: Final[Mapping[str, str]] = {
    "mamba": "mamba",
    "linear_attention": "mamba",
    "attention": "attention",
    "full_attention": "attention",
    "moe": "moe",
    "mlp": "mlp",
}
"""What a layer is called in releases, and by transformers 5."""


def mamba_names(mixer: str) -> dict[str, str]:
    """The modules below a layer's ``mixer``, given with its dot."""
    return {
        "ssm_in": f"{mixer}in_proj",
        "ssm_conv": f"{mixer}conv1d",
        "ssm_a_log": f"{mixer}A_log",
        "ssm_d": f"{mixer}D",
        "ssm_dt_bias": f"{mixer}dt_bias",
        "ssm_norm": f"{mixer}norm",
        "ssm_out": f"{mixer}out_proj",
    }


def read_mamba(
    raw: RawConfig, norm: Literal["gate first", "norm first"] | None = "gate first", inner: int | None = None,
    **more: Any,  # fields of it
) -> Mamba:  # fmt: skip
    """The sizes of Granite, Bamba and Falcon-H1; ``inner``: channels of x, if they do not follow from the hidden size."""
    raw.ignore("mamba_chunk_size")
    inner = inner or raw.integer("mamba_expand", 2) * raw.integer("hidden_size")
    heads, size = raw.integer("mamba_n_heads", 128), raw.values.get("mamba_d_head")
    size = inner // heads if size in (None, "auto") else raw.integer("mamba_d_head")
    raw.ignore("mamba_d_head", "mamba_expand")
    if heads * size != inner:
        raise raw.unsupported("mamba_n_heads", heads, f"{inner} channels in heads of {size}")
    fields: dict[str, Any] = {
        "value_heads": heads,
        "head_size": size,
        "groups": raw.integer("mamba_n_groups", 1),
        "state_size": raw.integer("mamba_d_state", 256),
        "kernel": raw.integer("mamba_d_conv", 4),
        "norm": norm,
        "conv_bias": raw.flag("mamba_conv_bias", True),
        "step_limits": step_limits(raw),
    }
    bias = raw.flag("mamba_proj_bias", False)
    return Mamba(**{**fields, "in_bias": bias, "out_bias": bias, **more})


def read_nemotron_mamba(raw: RawConfig) -> Mamba:
    """The sizes of Nemotron-H, by other keys."""
    raw.ignore(
        "chunk_size", "expand", "use_mamba_kernels", "mamba_ssm_cache_dtype", "mamba_proj_bias"
    )
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


def step_limits(raw: RawConfig) -> tuple[float, float]:
    """``time_step_limit``, whose upper end may be infinite (transformers 5 writes that as an object)."""
    value = raw.values.get("time_step_limit")
    raw.ignore("time_step_limit")
    if value is None:
        return 0.0, math.inf
    ends = list(value) if isinstance(value, list | tuple) else []
    ends = [math.inf if end == {"__float__": "Infinity"} else end for end in ends]
    if len(ends) != 2 or not all(type(end) in (int, float) for end in ends) or not 0 <= ends[0] <= ends[1]:  # fmt: skip
        raise raw.unsupported("time_step_limit", value, "two numbers >= 0, the smaller one first")
    return float(ends[0]), float(ends[1])


def read_kinds(raw: RawConfig, key: str, known: tuple[str, ...]) -> list[str] | None:
    """The kinds of layers that a key lists, by the names of ``KINDS``; None if the config lists none."""
    found = raw.strings(key)
    for kind in found or ():
        if KINDS.get(kind) not in known:
            raise raw.unsupported(key, kind, " or ".join(known))
    return None if found is None else [KINDS[kind] for kind in found]
