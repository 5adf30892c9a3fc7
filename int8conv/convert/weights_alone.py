"""The weights of a model that the runtime cannot run, from headers alone: all that is known of its memory."""

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
from ..formats.safetensors.dtypes import FLOAT_DTYPES, SCALED_DTYPES
from ..formats.safetensors.stored import StoredTensor
from ..runtime.opening import open_model
from .options import ConvertOptions
from .plan import make_plan
from .preview import most_columns
from .source import open_source


@dataclass(frozen=True)
class WeightsAlone:
    """Bytes of a model's weights; other memory depends on features that the runtime does not know."""

    folder: Path
    weights: dict[str, int]
    """By kind, or by dtype for an unconverted source."""
    estimated: bool
    """Whether they are those that ``convert_checkpoint`` would produce, with an upper bound for outlier columns."""
    weights_16bit: int
    """Bytes of the same model in 16 bits."""

    @property
    def total(self) -> int:
        """Bytes of all kinds."""
        return sum(self.weights.values())

    def to_json(self) -> dict[str, Any]:
        """All figures; null for unknown ones."""
        return {
            "weights": self.weights, "weights_total": self.total,
            "estimated": ["outlier columns"] if self.estimated else [],
            "kv_cache": None, "activations": None, "total": None,
            "fp16": {
                "weights": self.weights_16bit, "kv_cache": None, "activations": None, "total": None,
            },
        }  # fmt: skip


def weights_alone(path: str | os.PathLike[str], *, convert: bool = True) -> WeightsAlone:
    """The weights of a converted folder, or of a source: as ``convert_checkpoint`` would convert it, or as they are.

    Raises:
        UnsupportedModelError: nothing in the source looks like a linear.
        NotFoundError, HubError, CheckpointError, SafetensorsError, ConvertedFormatError: as for ``open_model``.
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
    floats = tensor.dtype in FLOAT_DTYPES or tensor.dtype in SCALED_DTYPES
    return 2 * prod(tensor.shape) if floats else tensor.nbytes
