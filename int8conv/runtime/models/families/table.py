"""``docs/families.md``: what the families' files say, as a page.

python -m int8conv.runtime.models.families.table > docs/families.md
"""

from __future__ import annotations

import inspect
import sys

from . import FAMILIES
from .family import Family

_HEAD = """\
# Families

What `int8conv` runs and calibrates, by the `model_type` of `config.json`. Others can be converted, by names and shapes, but not run. A
feature of a config that is not known here is refused by name.

This page is made by `python -m int8conv.runtime.models.families.table`.

| model_type | file | linears of a block | outside |
| --- | --- | --- | --- |
"""
_LINEARS = (
    "q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down", "router", "expert_gate", "expert_up", "expert_down",
    "shared_gate", "shared_up", "shared_down",
)  # fmt: skip
_OUTSIDE = ("embed", "positions", "project_in", "project_out", "head")


def page() -> str:
    """The whole page."""
    return _HEAD + "".join(_row(family) for _, family in sorted(FAMILIES.items()))


def _row(family: Family) -> str:
    file = inspect.getmodule(family.read_config)
    assert file is not None
    name = file.__name__.rpartition(".")[2]
    link = f"[{name}.py](../int8conv/runtime/models/families/{name}.py)"
    linears = _names(family, _LINEARS, "{}.")
    return f"| `{family.model_type}` | {link} | {linears} | {_names(family, _OUTSIDE, '')} |\n"


def _names(family: Family, roles: tuple[str, ...], behind: str) -> str:
    fused = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
    hidden = {part for role, parts in fused.items() if role in family.names for part in parts}
    found = [family.names[role] for role in roles if role in family.names and role not in hidden]
    return ", ".join(f"`{name.partition(behind)[2] if behind else name}`" for name in found)


if __name__ == "__main__":
    sys.stdout.write(page())
