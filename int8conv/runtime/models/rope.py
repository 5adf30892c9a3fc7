"""Reading a rotary embedding (arXiv:2104.09864) from a config: base, and scaling for longer contexts."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Any, Final

from ...errors import JsonFileError
from .config import Rope
from .raw_config import RawConfig

_ORIGINAL: Final = {"original_max_position_embeddings": "original_positions"}
_FIELDS: Final[dict[str, dict[str, str]]] = {
    "default": {},
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        **_ORIGINAL,
    },
    "yarn": {"factor": "factor", **_ORIGINAL},
    "longrope": _ORIGINAL,
    "proportional": {},
}
"""For each kind: the config keys that it requires, and the field of ``Rope`` that each sets."""
_OPTIONAL: Final[dict[str, dict[str, str]]] = {
    "yarn": {"beta_fast": "beta_fast", "beta_slow": "beta_slow"},
    "longrope": {"factor": "factor"},
    "proportional": {"factor": "factor", "partial_rotary_factor": "rotary_fraction"},
}
MOST_FACTOR: Final = 1e12
"""Limit on all numbers here: bases go up to 1e9, factors to a few hundred."""
_SAME_AS: Final = {"su": "longrope"}


def read_rope(
    raw: RawConfig,
    fraction: float | None = None,
    theta: float = 10000.0,
    ignored: Collection[str] = (),
) -> Rope:
    """Read ``rope_theta`` and ``rope_scaling`` of old configs, or ``rope_parameters`` of new ones.

    Args:
        raw: the config.
        fraction: fraction of channels to rotate if the config does not set it; None: all, and the config may not set anything else.
        theta: the base if the config does not set it.
        ignored: keys of a section that the caller reads.

    Raises:
        UnsupportedFeatureError: a kind of scaling, or one of its keys, is not supported.
        JsonFileError: a key is missing or malformed.
    """
    base = raw.values.get("rope_theta")
    rope = Rope(theta if base is None else _positive(raw, "rope_theta", base))
    if fraction is not None:
        key = "partial_rotary_factor" if "rotary_pct" not in raw.values else "rotary_pct"
        rope = replace(rope, rotary_fraction=raw.positive(key, raw.number(key, fraction), most=1.0))
    for section in ("rope_scaling", "rope_parameters"):
        values = raw.values.get(section)
        if values is not None and not isinstance(values, dict):
            raise _malformed(raw, section, "an object", values)
        known = {key: value for key, value in (values or {}).items() if key not in ignored}
        rope = read_section(raw, section, known, rope, partial=fraction is not None)
    return rope


def read_layer_ropes(
    raw: RawConfig, thetas: tuple[float, float] = (10000.0, 10000.0)
) -> tuple[Rope, Rope] | None:
    """The embeddings of layers without and with a window, if ``rope_parameters`` has a section for each; ``thetas``: default bases."""
    sections = raw.values.get("rope_parameters")
    names = ("full_attention", "sliding_attention")
    if not isinstance(sections, dict) or not set(sections) & set(names):
        return None
    ropes = []
    for name, theta in zip(names, thetas, strict=True):
        section = sections.get(name) or {}
        if not isinstance(section, dict):
            raise raw.unsupported(f"rope_parameters.{name}", section, "an object")
        ropes.append(read_section(raw, f"rope_parameters.{name}", dict(section), Rope(theta)))
    return ropes[0], ropes[1]


def read_section(
    raw: RawConfig, section: str, values: dict[str, Any], rope: Rope, *, partial: bool = False
) -> Rope:
    """``rope``, updated from a section of the config."""
    if "rope_theta" in values:
        rope = replace(
            rope, theta=_positive(raw, f"{section}.rope_theta", values.pop("rope_theta"))
        )
    if partial and "partial_rotary_factor" in values:
        fraction = values.pop("partial_rotary_factor")
        rope = replace(
            rope, rotary_fraction=_positive(raw, f"{section}.partial_rotary_factor", fraction, 1.0)
        )
    elif values.get("partial_rotary_factor") == 1:
        del values["partial_rotary_factor"]
    kind = values.pop("type", "default")
    key = f"{section}.rope_type" if "rope_type" in values else f"{section}.type"
    kind = values.pop("rope_type", kind)
    kind = _SAME_AS.get(kind, kind) if isinstance(kind, str) else kind
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise raw.unsupported(key, kind, f"one of {', '.join(_FIELDS)}")
    if kind == "default":
        _refuse_rest(raw, section, values)
        return rope
    if kind == "longrope":  # older configs have it outside the section
        outside = raw.optional_integer("original_max_position_embeddings")
        values.setdefault("original_max_position_embeddings", outside)
    fields: dict[str, Any] = {
        field: _positive(raw, f"{section}.{name}", values.pop(name, None))
        for name, field in _FIELDS[kind].items()
    }
    for name, field in _OPTIONAL.get(kind, {}).items():
        if (value := values.pop(name, None)) is not None:
            fields[field] = _positive(raw, f"{section}.{name}", value)
    rope = replace(rope, kind=kind, **fields)  # type: ignore[arg-type]
    _check_order(raw, section, rope)
    rope = _scaled(raw, section, values, rope)
    _refuse_rest(raw, section, values)
    return rope


def _check_order(raw: RawConfig, section: str, rope: Rope) -> None:
    """Check the order of pairs whose difference is a divisor, and numbers whose logarithm is."""
    key = f"{section}.high_freq_factor"
    if rope.kind == "llama3" and rope.high_freq_factor <= rope.low_freq_factor:
        low = f"more than low_freq_factor {rope.low_freq_factor:g}"
        raise _malformed(raw, key, low, rope.high_freq_factor)
    if rope.kind == "yarn" and rope.theta <= 1:
        raise _malformed(raw, "rope_theta", "more than 1", rope.theta)
    if rope.rotary_fraction > 1:
        raise _malformed(raw, f"{section}.partial_rotary_factor", "at most 1", rope.rotary_fraction)
    if rope.kind == "longrope" and rope.original_positions <= 1:
        key = "original_max_position_embeddings"
        raise _malformed(raw, key, "more than 1", rope.original_positions)


def context(rope: Rope, positions: int) -> int:
    """The number of positions that a model with ``positions`` can handle with this embedding."""
    if rope.kind == "dynamic":
        return max(1, int(rope.factor * positions))
    return (
        max(positions, int(rope.factor * rope.original_positions))
        if rope.kind == "yarn"
        else positions
    )


def _scaled(raw: RawConfig, section: str, values: dict[str, Any], rope: Rope) -> Rope:
    """Values that a kind derives from the rest of the config."""
    if rope.kind == "dynamic":
        values.pop("original_max_position_embeddings", None)
        return replace(rope, original_positions=raw.integer("max_position_embeddings"))
    magnitude = values.pop("attention_factor", None)
    if magnitude is not None:
        rope = replace(rope, magnitude=_positive(raw, f"{section}.attention_factor", magnitude))
    if rope.kind == "yarn":
        pair = values.pop("mscale", None), values.pop("mscale_all_dim", None)
        truncated = values.pop("truncate", True)
        if type(truncated) is not bool:
            raise _malformed(raw, f"{section}.truncate", "true or false", truncated)
        rope = replace(rope, truncated=truncated)
        if any(pair) and not all(pair):
            raise raw.unsupported(f"{section}.mscale", pair[0])
        if magnitude is None:
            rope = replace(rope, magnitude=_yarn_magnitude(raw, section, rope.factor, pair))
    if rope.kind == "longrope":
        rope = _with_factors(raw, section, values, rope)
        stretch = rope.factor
        if rope.factor == 1.0:
            stretch = raw.integer("max_position_embeddings") / rope.original_positions
        if magnitude is None and stretch > 1:
            logs = math.log(stretch) / math.log(rope.original_positions)
            rope = replace(rope, magnitude=math.sqrt(1 + logs))
    return rope


def _yarn_magnitude(
    raw: RawConfig, section: str, factor: float, pair: tuple[object, object]
) -> float:
    """``0.1 log(factor) + 1`` (arXiv:2309.00071, section 3.4); with both ``mscale`` keys the ratio of two such numbers."""
    log = 0.1 * math.log(max(factor, 1.0))
    if not any(pair):
        return log + 1
    keys = (f"{section}.mscale", f"{section}.mscale_all_dim")
    own, all_dim = (_positive(raw, key, value) for key, value in zip(keys, pair, strict=True))
    return (own * log + 1) / (all_dim * log + 1)


def _with_factors(raw: RawConfig, section: str, values: dict[str, Any], rope: Rope) -> Rope:
    both = []
    for name in ("short_factor", "long_factor"):
        factors = values.pop(name, None)
        if not isinstance(factors, list) or not factors:
            raise _malformed(raw, f"{section}.{name}", "a list of numbers", factors)
        both.append(tuple(_positive(raw, f"{section}.{name}", factor) for factor in factors))
    return replace(rope, short_factors=both[0], long_factors=both[1])


def _refuse_rest(raw: RawConfig, section: str, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if value is not None:
            raise raw.unsupported(f"{section}.{name}", value, "no such key")


def _positive(raw: RawConfig, key: str, value: object, most: float = MOST_FACTOR) -> float:
    """A number within limits, as tables in float32 would overflow at the extremes."""
    return raw.positive(key, value, most)


def _malformed(raw: RawConfig, key: str, expected: str, found: object) -> JsonFileError:
    return JsonFileError(f"config key '{key}'", file=raw.file, expected=expected, found=repr(found))
