"""How a config describes its rotary embedding (arXiv:2104.09864): the base, and the scaling for longer contexts."""

from __future__ import annotations

from typing import Any, Final

from ..errors import JsonFileError
from .config import RawConfig, Rope

_FIELDS: Final[dict[str, dict[str, str]]] = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_position_embeddings": "original_positions",
    },
}
"""Of each kind: the config's keys, all of them needed, and the field of ``Rope`` that each fills."""


def read_rope(raw: RawConfig) -> Rope:
    """From ``rope_theta`` and ``rope_scaling`` of old configs, or ``rope_parameters`` of new ones.

    Raises:
        UnsupportedFeatureError: a kind of scaling, or a key of it, that is not known.
        JsonFileError: a key is absent or malformed.
    """
    theta = raw.values.get("rope_theta", 10000.0)
    scaling: dict[str, Any] = {}
    for section in ("rope_scaling", "rope_parameters"):
        values = raw.values.get(section)
        if values is not None and not isinstance(values, dict):
            raise _malformed(raw, section, "an object", values)
        rest = dict(values or {})
        theta = rest.pop("rope_theta", theta)
        scaling = _read_scaling(raw, section, rest) or scaling
    return Rope(_positive(raw, "rope_theta", theta), **scaling)


def _read_scaling(raw: RawConfig, section: str, values: dict[str, Any]) -> dict[str, Any]:
    """The fields of ``Rope`` that a section fills; none for the default kind."""
    kind = values.pop("type", "default")
    key = f"{section}.rope_type" if "rope_type" in values else f"{section}.type"
    kind = values.pop("rope_type", kind)
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise raw.unsupported(key, kind, f"one of {', '.join(_FIELDS)}")
    fields = {
        field: _positive(raw, f"{section}.{name}", values.pop(name, None))
        for name, field in _FIELDS[kind].items()
    }
    for name, value in values.items():
        raise raw.unsupported(f"{section}.{name}", value, "no such key")
    return {"kind": kind, **fields} if fields else {}


def _positive(raw: RawConfig, key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise _malformed(raw, key, "a number > 0", value)
    return float(value)


def _malformed(raw: RawConfig, key: str, expected: str, found: object) -> JsonFileError:
    return JsonFileError(f"config key '{key}'", file=raw.file, expected=expected, found=repr(found))
