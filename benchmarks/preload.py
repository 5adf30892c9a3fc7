"""Import the package before workers are forked: in each of them imports would take most of the time."""

from __future__ import annotations

import importlib
import pkgutil

import int8conv


def import_all() -> None:
    """Every module but those for a GPU."""
    for module in pkgutil.walk_packages(int8conv.__path__, "int8conv."):
        if ".gpu" not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
