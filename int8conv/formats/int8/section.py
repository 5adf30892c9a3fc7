"""``quantization_config`` in ``config.json`` (SPEC.md section 2.1), for tools that do not read the manifest."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from ...errors import JsonFileError
from ..json_file import dump_json
from .manifest import InputGroup
from .names import OUTLIER_WEIGHT, QUANT_METHOD, VERSION

SECTION: Final = "quantization_config"
GROUPS: Final = "groups"
_MOST_GROUP_BYTES: Final = 8 << 20
"""Largest size of all groups as text: half of a reader's limit for configs. Beyond that (about 40,000 experts) they are omitted."""


@dataclass(frozen=True)
class Group:
    """Linears that share an input and its outlier columns, as listed in the config."""

    linears: tuple[str, ...]
    outliers: int
    """k, the number of columns kept in 16 bits."""
    dtype: str | None
    """Dtype of ``outlier_weight``, F16 or BF16; None if k is 0."""
    threshold: float | None
    """As in the manifest."""


def describe_groups(inputs: Sequence[InputGroup], dtypes: Mapping[str, str]) -> list[Group]:
    """The groups of a manifest, with the dtypes of their outlier columns.

    Args:
        inputs: the manifest's inputs.
        dtypes: dtypes of the folder's tensors, by name.
    """
    return [
        Group(x.linears, x.outliers, dtypes.get(f"{x.linears[0]}.{OUTLIER_WEIGHT}"), x.threshold)
        for x in inputs
    ]


def dump_config(
    config: Mapping[str, Any], outliers: str, dtype: str, groups: Sequence[Group]
) -> bytes:
    """A source's ``config.json`` with the section added, one line per group.

    Args:
        config: the source's config.
        outliers: how outlier columns were chosen.
        dtype: the 16-bit type that float32 matrices were rounded to.
        groups: in the order of the manifest's ``inputs``.
    """
    section: dict[str, Any] = {"quant_method": QUANT_METHOD, "version": VERSION, "outliers": outliers, "dtype": dtype}  # fmt: skip
    lines = [f"    {json.dumps(name)}: {json.dumps(value)}" for name, value in section.items()]
    entries = [f"      {json.dumps(asdict(group), ensure_ascii=False)}" for group in groups]
    if sum(map(len, entries)) <= _MOST_GROUP_BYTES:
        lines.append(f"    {json.dumps(GROUPS)}: [\n" + ",\n".join(entries) + "\n    ]")
    rest = {name: value for name, value in config.items() if name != SECTION}
    before = dump_json(rest | {SECTION: None}).removesuffix(b"null\n}\n")
    return before + ("{\n" + ",\n".join(lines) + "\n  }\n}\n").encode()


def read_groups(section: Mapping[str, Any], file: object) -> tuple[Group, ...] | None:
    """The groups of a section; None if it has none (from an earlier release, or for a very large model).

    Raises:
        JsonFileError: they are malformed.
    """
    if GROUPS not in section:
        return None
    groups = section[GROUPS]
    if not isinstance(groups, list):
        raise JsonFileError(f"field '{GROUPS}' of {SECTION} is not a list", file=file,
                            found=type(groups).__name__)  # fmt: skip
    return tuple(_group(entry, file) for entry in groups)


def _group(entry: object, file: object) -> Group:
    values = entry if isinstance(entry, dict) else {}
    linears, outliers = values.get("linears"), values.get("outliers")
    dtype, threshold = values.get("dtype"), values.get("threshold", -1)
    sound = {
        "linears": isinstance(linears, list) and linears and all(isinstance(x, str) for x in linears),
        "outliers": type(outliers) is int and outliers >= 0,
        "dtype": dtype in ("F16", "BF16") if outliers else dtype is None,
        "threshold": threshold is None
        or (type(threshold) in (int, float) and 0 <= threshold <= sys.float_info.max),
    }  # fmt: skip
    for name, holds in sound.items():
        if not holds:
            raise JsonFileError(f"field '{name}' of a group in {SECTION} is missing or malformed", file=file,
                                found=repr(values.get(name)))  # fmt: skip
    assert isinstance(linears, list)
    assert isinstance(outliers, int)
    return Group(tuple(linears), outliers, dtype, None if threshold is None else float(threshold))
