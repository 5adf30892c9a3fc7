"""Bytes of a model's weights by kind: in a converted folder, in a source as loaded, and as ``convert`` would produce them."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Final

from ...formats.int8.folder import ConvertedFolder
from ...formats.int8.outlier_cap import most_outliers
from ..models.architecture import Architecture, Kind, Module

_FAULT_AROUND: Final = 1 << 16
"""Bytes of a file that Linux maps around a page that is read, if they are in the page cache."""

_LABELS: Final[dict[Kind | None, str]] = {
    "embedding": "embeddings",
    "norm": "norms",
    "attention": "attention (16/32 bit)",
    "ffn": "FFN (16/32 bit)",
    "router": "routers",
    "recurrence": "recurrences",
    "projection": "projections",
    "head": "head",
}
ESTIMATED: Final = "outlier columns"
"""The kind that is unknown before the conversion and estimated by its upper bound."""


def label(module: Module) -> str:
    """The kind of a module that is not quantized."""
    return _LABELS[module.kind]


def converted_weights(converted: ConvertedFolder, architecture: Architecture) -> Counter[str]:
    """Bytes of a converted folder's tensors."""
    module_kind: dict[str, Kind] = {m.path: m.kind for m in architecture.modules}
    sizes: Counter[str] = Counter()
    for linear in converted.linears.values():
        sizes["int8 weights"] += linear.weight.nbytes
        sizes["row scales"] += linear.scale.nbytes
        for part in (linear.outlier_index, linear.outlier_weight):
            sizes["outlier columns"] += part.nbytes if part else 0
        sizes["biases"] += linear.bias.nbytes if linear.bias else 0
    for tensor in converted.others():
        path, _, suffix = tensor.name.rpartition(".")
        path = tensor.name if tensor.name in module_kind else path
        kind = "biases" if suffix == "bias" else _LABELS.get(module_kind.get(path), "other")
        sizes[kind] += tensor.nbytes
    return sizes


def loaded_weights(architecture: Architecture, item: int) -> Counter[str]:
    """Bytes of a source loaded with ``item`` bytes per element."""
    sizes: Counter[str] = Counter()
    for module in architecture.modules:
        sizes[label(module)] += prod(module.shape) * item
        sizes["biases"] += module.shape[0] * item if module.bias else 0
    return sizes


def estimated_weights(architecture: Architecture) -> Counter[str]:
    """Bytes that ``convert`` would produce, with as many outlier columns as its default allows."""
    sizes: Counter[str] = Counter()
    for module in architecture.modules:
        sizes["biases"] += module.shape[0] * 2 if module.bias else 0
        if not module.group:
            sizes[label(module)] += prod(module.shape) * 2
            continue
        out_features, in_features = module.shape
        columns = most_outliers(in_features)
        sizes["int8 weights"] += out_features * in_features
        sizes["row scales"] += 4 * out_features
        sizes["outlier columns"] += columns * (4 + 2 * out_features)
    return sizes


def parameter_count(architecture: Architecture) -> int:
    """Number of elements of the model before conversion."""
    return sum(prod(m.shape) + (m.shape[0] if m.bias else 0) for m in architecture.modules)


def unread_rows(module: Module, tokens: int, nbytes: int) -> int:
    """Bytes of a mapped embedding that ``tokens`` tokens leave unread, if they are spread evenly over the vocabulary.

    A row is read together with its surroundings, as the system maps 64 KiB at a time.
    """
    rows = module.shape[0]
    if module.role == "positions":
        around = min(1.0, _FAULT_AROUND / max(nbytes, 1))
        return int(nbytes * max(0.0, 1 - tokens / rows - around))
    window = min(rows, max(1, _FAULT_AROUND * rows // max(nbytes, 1)))
    return int(nbytes * (1 - window / rows) ** tokens)
