"""Families of models, one small file each, named after ``model_type``.

A family is data: how its config reads, and what its modules are called on the hub. To add one, write a file with a
``FAMILY`` and enter it below. Nothing here needs torch.
"""

from __future__ import annotations

from typing import Any

from ...errors import UnknownFamilyError
from . import llama, opt
from .family import Family

FAMILIES: dict[str, Family] = {f.model_type: f for f in (llama.FAMILY, opt.FAMILY)}

__all__ = ["FAMILIES", "Family", "find_family"]


def find_family(config: dict[str, Any], file: object = "config.json") -> Family:
    """The family that a ``config.json`` names.

    Raises:
        UnknownFamilyError: its ``model_type`` is not known.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UnknownFamilyError(
            f"unknown model_type {model_type!r}", file=file,
            expected=f"one of {', '.join(sorted(FAMILIES))}", found=repr(model_type),
        )  # fmt: skip
    return FAMILIES[model_type]
