"""int8conv: convert checkpoints to int8 once, offline, and run them.

    report = int8conv.convert("checkpoint", "out")
    model = int8conv.load("out")
    print(model.generate("Once").text)

Importing this module imports neither torch nor numpy; the names below are loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .convert.converter import convert
    from .convert.report import ConvertReport
    from .errors import Int8convError
    from .runtime.generate.generation import Generation
    from .runtime.loader import load
    from .runtime.measure.footprint import Footprint
    from .runtime.model import Model

_HOMES = {
    "ConvertReport": ".convert.report",
    "Footprint": ".runtime.measure.footprint",
    "Generation": ".runtime.generate.generation",
    "Int8convError": ".errors",
    "Model": ".runtime.model",
    "load": ".runtime.loader",
}

__all__ = [
    "ConvertReport",
    "Footprint",
    "Generation",
    "Int8convError",
    "Model",
    "__version__",
    "convert",
    "load",
]


def __getattr__(name: str) -> Any:
    if name == "convert":
        return importlib.import_module(".convert", __name__)  # a room that can be called
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return __all__
