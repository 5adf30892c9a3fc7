"""The weights of a model that the runtime cannot run: all that can be said of its memory, from headers alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ..formats.int8.layout import TensorSpec
from ..formats.int8.names import WEIGHT
from ..formats.int8.summary import inspect_folder, kind_of
from ..formats.safetensors.dtypes import FLOAT_DTYPES, FP8_DTYPES
from ..formats.safetensors.stored import StoredTensor
from ..runtime.opening import open_model
from .options import ConvertOptions
from .plan import make_plan
from .preview import most_columns
from .source import open_source


@dataclass(frozen=True)
class WeightsAlone:
    """Bytes of a model's weights; what it needs besides depends on what the runtime does not know."""

    folder: Path
    weights: dict[str, int]
    """By kind, or by dtype for a source as it is."""
    estimated: bool
    """They are those that ``convert_checkpoint`` would make, and the outlier columns an upper bound."""
    weights_16bit: int
    """Of the same model in 16 bits."""

    @property
    def total(self) -> int:
        """Of all kinds."""
        return sum(self.weights.values())

    def to_json(self) -> dict[str, Any]:
        """Every figure; null stands for what is not known."""
        return {
            "weights": self.weights, "weights_total": self.total,
            "estimated": ["outlier columns"] if self.estimated else [],
            "kv_cache": None, "activations": None, "total": None,
            "fp16": {
                "weights": self.weights_16bit, "kv_cache": None, "activations": None, "total": None,
            },
        }  # fmt: skip


def weights_alone(path: str | os.PathLike[str], *, convert: bool = True) -> WeightsAlone:
    """The weights of a converted folder; or of a source: what ``convert_checkpoint`` would make of it, else those that it has.

    Raises:
        UnsupportedModelError: nothing in the source looks like a linear.
        NotFoundError, HubError, CheckpointError, SafetensorsError, ConvertedFormatError: as ``open_model``.
    """
    opened = open_model(path, headers_only=True)
    if opened.converted is not None:
        summary = inspect_folder(opened.converted)
        kinds = {row.label: row.nbytes for row in summary.kinds if row.nbytes}
        return WeightsAlone(opened.folder, kinds, False, summary.total.nbytes_16bit)
    tensors = opened.checkpoint.tensors.values()
    half = sum(_in_16_bits(tensor) for tensor in tensors)
    if not convert:
        stored: Counter[str] = Counter()
        for tensor in tensors:
            stored[tensor.dtype] += tensor.nbytes
        return WeightsAlone(opened.folder, dict(stored.most_common()), False, half)
    options = ConvertOptions()
    source = open_source(opened.source, options, headers_only=True)
    plan = make_plan(source.selection, most_columns(source, options), options)
    specs = (spec for unit in plan.units for run in unit for spec in run)
    return WeightsAlone(opened.folder, _by_kind(specs), True, half)


def _by_kind(specs: Iterable[TensorSpec]) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for spec in specs:
        codes = spec.dtype == "I8" and len(spec.shape) == 3 and spec.name.endswith(f".{WEIGHT}")
        sizes[kind_of(spec.name, spec.dtype, quantized=codes)] += spec.nbytes
    return dict(sizes.most_common())


def _in_16_bits(tensor: StoredTensor) -> int:
    floats = tensor.dtype in FLOAT_DTYPES or tensor.dtype in FP8_DTYPES
    return 2 * prod(tensor.shape) if floats else tensor.nbytes
