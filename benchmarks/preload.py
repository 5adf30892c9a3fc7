"""Import the package before workers are forked: in each of them imports would take most of the time."""

from __future__ import annotations

import importlib
import pkgutil

import int8conv

ROOMS = ("formats", "kernels", "runtime", "convert", "cli")
"""What commands are made of; adapters for other programs are not, and import those."""


def import_all() -> None:
    """Every module that a command may need, but those for a GPU."""
    for module in pkgutil.walk_packages(int8conv.__path__, "int8conv."):
        if module.name.split(".")[1] in ROOMS and ".gpu" not in module.name:
            importlib.import_module(module.name)
