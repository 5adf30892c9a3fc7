"""int8conv: convert checkpoints to int8 once, offline, and run them.

    report = int8conv.convert_checkpoint("checkpoint", "out")
    model = int8conv.load("out")
    print(model.generate("Once").text)

Importing this module imports neither torch nor numpy; the names below are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

from . import errors
from .errors import Int8convError

if TYPE_CHECKING:
    from .convert.compare import SourceComparison, compare
    from .convert.converter import convert_checkpoint
    from .convert.exchange.adopt import adopt
    from .convert.exchange.export import ExportReport, export_checkpoint
    from .convert.exchange.importing import import_checkpoint
    from .convert.outliers.calibrate import calibrate
    from .convert.report import ConvertReport
    from .formats.int8.stats import Stats
    from .formats.int8.summary import FolderSummary, inspect_folder
    from .formats.int8.verify import verify
    from .publish.push import PushReport, push
    from .runtime.generate.constraint import Constraint
    from .runtime.generate.generation import Generation
    from .runtime.generate.likelihood import Likelihood
    from .runtime.generate.sampling import Sampling
    from .runtime.loader import load
    from .runtime.measure.evaluate import Evaluation, evaluate
    from .runtime.measure.footprint import Footprint, predict_footprint
    from .runtime.model import Model

__version__ = "0.1.0"

__all__ = [
    "Constraint",
    "ConvertReport",
    "Evaluation",
    "ExportReport",
    "FolderSummary",
    "Footprint",
    "Generation",
    "Int8convError",
    "Likelihood",
    "Model",
    "PushReport",
    "Sampling",
    "SourceComparison",
    "Stats",
    "__version__",
    "adopt",
    "calibrate",
    "compare",
    "convert_checkpoint",
    "errors",
    "evaluate",
    "export_checkpoint",
    "import_checkpoint",
    "inspect_folder",
    "load",
    "predict_footprint",
    "push",
    "verify",
]

_HOMES: Final = {
    "Constraint": ".runtime.generate.constraint",
    "ConvertReport": ".convert.report",
    "Evaluation": ".runtime.measure.evaluate",
    "ExportReport": ".convert.exchange.export",
    "FolderSummary": ".formats.int8.summary",
    "Footprint": ".runtime.measure.footprint",
    "Generation": ".runtime.generate.generation",
    "Likelihood": ".runtime.generate.likelihood",
    "Model": ".runtime.model",
    "PushReport": ".publish.push",
    "Sampling": ".runtime.generate.sampling",
    "SourceComparison": ".convert.compare",
    "Stats": ".formats.int8.stats",
    "adopt": ".convert.exchange.adopt",
    "calibrate": ".convert.outliers.calibrate",
    "compare": ".convert.compare",
    "convert_checkpoint": ".convert.converter",
    "evaluate": ".runtime.measure.evaluate",
    "export_checkpoint": ".convert.exchange.export",
    "import_checkpoint": ".convert.exchange.importing",
    "inspect_folder": ".formats.int8.summary",
    "load": ".runtime.loader",
    "predict_footprint": ".runtime.measure.footprint",
    "push": ".publish.push",
    "verify": ".formats.int8.verify",
}
"""The module that each name is loaded from; the imports above tell type checkers the same."""


if not TYPE_CHECKING:  # with it, a type checker would accept any name

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOMES[name], __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
