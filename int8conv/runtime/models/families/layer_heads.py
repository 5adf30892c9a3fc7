"""Shared by both forms of Gemma 4: the heads of layers without a window."""

from __future__ import annotations

from typing import Any, Final

from ....errors import JsonFileError
from ..config import Heads
from ..raw_config import RawConfig

_KEYS: Final = ("num_key_value_heads", "head_dim")


def read_layer_heads(
    raw: RawConfig, windows: tuple[int | None, ...], *, more: bool
) -> tuple[Heads, ...]:
    """By ``per_layer_config``; in releases, ``global_head_dim`` and, if ``more``, ``num_global_key_value_heads`` of all such layers."""
    usual = {"num_key_value_heads": raw.integer("num_key_value_heads", 4), "head_dim": raw.integer("head_dim", 256)}  # fmt: skip
    larger = {"head_dim": raw.integer("global_head_dim", 512)}
    count = raw.optional_integer("num_global_key_value_heads")
    if more and count is not None:
        larger["num_key_value_heads"] = count
    listed = raw.values.get("per_layer_config")
    raw.ignore("per_layer_config")
    changes = {} if listed is None else _by_layer(raw, listed)
    found: dict[int | None, Heads] = {}
    for layer, window in enumerate(windows):
        change = changes.get(layer, {}) if listed is not None else {} if window else larger
        keys = RawConfig(usual | change, raw.file)
        heads = Heads(*(keys.integer(key) for key in _KEYS))
        if found.setdefault(window, heads) != heads:
            raise raw.unsupported("per_layer_config", listed, "the same in all layers of a kind")
    return tuple(found[window] for window in windows)


def _by_layer(
    raw: RawConfig, listed: object
) -> dict[int, dict[str, Any]]:  # values are checked as they are read
    found: dict[int, dict[str, Any]] = {}
    for layer, change in listed.items() if isinstance(listed, dict) else [("", listed)]:
        if not (isinstance(layer, str) and layer.isdecimal() and isinstance(change, dict)):
            raise JsonFileError("config key 'per_layer_config'", file=raw.file, found=repr(change),
                                expected="an object for each layer")  # fmt: skip
        for key in change.keys() - set(_KEYS):
            raise raw.unsupported(f"per_layer_config.{layer}.{key}", change[key], " or ".join(_KEYS))  # fmt: skip
        found[int(layer[:9])] = change
    return found
