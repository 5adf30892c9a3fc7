"""The modules of recurrent layers: large linears like those of attention; everything that steers the recurrence is small, and kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from .config import DecoderConfig
from .modules import Module, linears
from .raw_config import RawConfig
from .recurrence import Delta, Mamba, ShortConv

MOST_STATE_SIZE: Final = 1 << 16
"""Limit on rows and columns of a head's state; real ones have at most 256."""


def recurrent_modules(c: DecoderConfig, layer: int, names: Mapping[str, str]) -> Iterator[Module]:
    """The modules of a recurrent layer, in order."""
    kind = c.recurrence
    if isinstance(kind, Delta):
        yield from _delta(c, kind, layer, names)
    elif isinstance(kind, Mamba):
        yield from _mamba(c, kind, layer, names)
    elif isinstance(kind, ShortConv):
        yield from linears("attention", layer, names, kind.bias, c.hidden_size, {"conv_in": kind.wide})  # fmt: skip
        yield _conv("conv", kind.channels, kind.kernel, kind.bias, layer, names)
        yield from linears("attention", layer, names, kind.bias, kind.size, {"conv_out": c.hidden_size})  # fmt: skip


def _conv(
    role: str, channels: int, kernel: int, bias: bool, layer: int, names: Mapping[str, str]
) -> Module:
    return Module(role, names[role], "recurrence", layer, (channels, 1, kernel), bias)


def _delta(c: DecoderConfig, d: Delta, layer: int, names: Mapping[str, str]) -> Iterator[Module]:
    outs = {"delta_qkv": d.channels, "delta_z": d.values}
    small = {"delta_b": d.value_heads, "delta_a": d.value_heads}
    if "delta_qkvz" in names:
        outs, small = {"delta_qkvz": d.wide}, {"delta_ba": 2 * d.value_heads}
    yield from linears("attention", layer, names, False, c.hidden_size, outs)
    for role, size in small.items():
        yield Module(role, names[role], "recurrence", layer, (size, c.hidden_size), False)
    yield _conv("delta_conv", d.channels, d.kernel, False, layer, names)
    for role in ("delta_a_log", "delta_dt_bias"):
        yield Module(role, names[role], "recurrence", layer, (d.value_heads,), False, bare=True)
    yield Module("delta_norm", names["delta_norm"], "norm", layer, (d.value_size,), False)
    yield from linears("attention", layer, names, False, d.values, {"delta_out": c.hidden_size})


def _mamba(c: DecoderConfig, m: Mamba, layer: int, names: Mapping[str, str]) -> Iterator[Module]:
    yield from linears("attention", layer, names, m.in_bias, c.hidden_size, {"ssm_in": m.wide})
    yield _conv("ssm_conv", m.channels, m.kernel, m.conv_bias, layer, names)
    for role in ("ssm_a_log", "ssm_d", "ssm_dt_bias"):
        yield Module(role, names[role], "recurrence", layer, (m.value_heads,), False, bare=True)
    if m.norm is not None:
        yield Module("ssm_norm", names["ssm_norm"], "norm", layer, (m.values,), False)
    yield from linears("attention", layer, names, m.out_bias, m.values, {"ssm_out": c.hidden_size})


def check_recurrence(c: DecoderConfig, raw: RawConfig) -> None:
    """Refuse sizes that do not go together.

    Raises:
        UnsupportedFeatureError: names the key.
    """
    kind = c.recurrence
    if kind is None:
        return
    if isinstance(kind, Delta):
        _check_multiple(raw, "linear_num_value_heads", kind.value_heads, kind.key_heads)
        keys = ("linear_conv_kernel_dim", "linear_key_head_dim", "linear_value_head_dim")
    elif isinstance(kind, Mamba):
        _check_multiple(raw, "mamba_n_heads", kind.value_heads, kind.groups)
        keys = ("mamba_d_conv", "mamba_d_state", "mamba_d_head")
    else:
        keys = ("conv_L_cache", "hidden_size", "hidden_size")
    if kind.kernel < 2:
        raise raw.unsupported(keys[0], kind.kernel, "2 or more")
    for key, size in zip(keys[1:], kind.sizes, strict=True):
        if size > MOST_STATE_SIZE:
            raise raw.unsupported(key, size, f"at most {MOST_STATE_SIZE:,}")


def _check_multiple(raw: RawConfig, key: str, count: int, divisor: int) -> None:
    if count % divisor:
        raise raw.unsupported(key, count, f"a multiple of {divisor}")
