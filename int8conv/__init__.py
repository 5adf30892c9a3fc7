"""int8conv: convert checkpoints to int8 once, offline, and run them.

    report = int8conv.convert_checkpoint("checkpoint", "out")
    model = int8conv.load("out")
    print(model.generate("Once").text)

Importing this module imports neither torch nor numpy; the names below are loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from . import errors
from .errors import Int8convError

if TYPE_CHECKING:
    from .convert.converter import convert_checkpoint
    from .convert.report import ConvertReport
    from .runtime.generate.generation import Generation
    from .runtime.loader import load
    from .runtime.measure.footprint import Footprint
    from .runtime.model import Model

__version__ = "0.1.0"

__all__ = [
    "ConvertReport",
    "Footprint",
    "Generation",
    "Int8convError",
    "Model",
    "__version__",
    "convert_checkpoint",
    "errors",
    "load",
]

_HOMES = {
    "ConvertReport": ".convert.report",
    "Footprint": ".runtime.measure.footprint",
    "Generation": ".runtime.generate.generation",
    "Model": ".runtime.model",
    "convert_checkpoint": ".convert.converter",
    "load": ".runtime.loader",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
