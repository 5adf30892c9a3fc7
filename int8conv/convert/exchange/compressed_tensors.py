"""A converted folder as a W8A8 checkpoint of compressed-tensors (``int-quantized``): codes and row scales, no outlier columns."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

import numpy as np

from ...errors import ArgumentError, UnsupportedFeatureError
from ...formats.int8.dequantize import dequantized_blocks
from ...formats.int8.folder import ConvertedFolder, QuantizedLinear
from ...formats.int8.layout import TensorSpec
from ...formats.int8.names import OUTLIER_INDEX, OUTLIER_WEIGHT, WEIGHT
from ...formats.int8.section import SECTION
from ...runtime.models.architecture import Architecture
from ..rounding.quantize import RowQuantizer
from ..rounding.sample import RowSample
from .dense import check_no_stacks, known_architecture, transposed_paths
from .dense_stacks import check_no_known_stacks
from .parts import BLOCK_ELEMENTS, Block, Part, copied

_ARGUMENTS: Final = {
    "num_bits": 8, "type": "int", "symmetric": True, "group_size": None, "block_structure": None, "actorder": None,
}  # fmt: skip
_WEIGHTS: Final = _ARGUMENTS | {"strategy": "channel", "dynamic": False, "observer": "minmax"}
_ACTIVATIONS: Final = _ARGUMENTS | {"strategy": "token", "dynamic": True, "observer": None}
_LAYOUT: Final = "int-quantized"
_VERSION: Final = "0.17.0"
"""Of compressed-tensors, whose layout this is."""


def compressed_parts(
    converted: ConvertedFolder, costs: dict[str, float | None], *, fold: bool
) -> Iterator[Part]:
    """The tensors of a compressed-tensors checkpoint: codes ``[out, in]`` and scales F32 ``[out, 1]``, bit for bit if there are no columns.

    Args:
        converted: the folder.
        costs: gets the SQNR in dB of each linear whose columns are folded, as it is written; None: nothing was lost.
        fold: quantize outlier columns, with the rows that they belong to.

    Raises:
        ArgumentError: there are outlier columns, and ``fold`` is not set.
        UnsupportedFeatureError: an embedding or a transposed linear is int8.
        UnsupportedModelError: the source has its experts in stacks.
    """
    _check(converted, fold=fold)
    for name, tensor in converted.checkpoint.tensors.items():
        path, _, kind = name.rpartition(".")
        linear = converted.linears.get(path)
        if linear is None or tensor is linear.bias:
            yield copied(tensor)
        elif kind in (OUTLIER_INDEX, OUTLIER_WEIGHT):
            continue
        elif linear.outliers:
            if kind == WEIGHT:
                yield _folded(linear, costs)
        else:
            shape = tensor.shape[:2] if kind == WEIGHT else (*tensor.shape, 1)
            yield copied(tensor, shape=shape)


def compressed_config(converted: ConvertedFolder) -> dict[str, Any]:
    """The source's config with the section of compressed-tensors."""
    architecture = known_architecture(converted)
    ignored = sorted(_ignored(converted, architecture))
    group = {
        "targets": ["Linear"], "format": _LAYOUT,
        "weights": _WEIGHTS, "input_activations": _ACTIVATIONS, "output_activations": None,
    }  # fmt: skip
    section: Mapping[str, Any] = {
        "quant_method": "compressed-tensors", "format": _LAYOUT, "quantization_status": "compressed", "version": _VERSION,
        "global_compression_ratio": None, "kv_cache_scheme": None, "ignore": ignored,
        "config_groups": {"group_0": group},
    }  # fmt: skip
    return converted.config | {SECTION: section}


def _ignored(converted: ConvertedFolder, architecture: Architecture | None) -> Collection[str]:
    """Paths of matrices in 16 bits, any of which may be a linear in the other tool, and of a head that is tied."""
    head = "lm_head" if architecture is None else architecture.family.names["head"]
    paths = {head} - converted.linears.keys()
    for tensor in converted.others():
        path, _, kind = tensor.name.rpartition(".")
        if kind == WEIGHT and len(tensor.shape) == 2:
            paths.add(path)
    embeddings = () if architecture is None else architecture.modules
    return paths - {module.path for module in embeddings if module.kind == "embedding"}


def _check(converted: ConvertedFolder, *, fold: bool) -> None:
    check_no_stacks(converted)
    architecture = known_architecture(converted)
    check_no_known_stacks(converted, architecture, "compressed-tensors")
    modules = () if architecture is None else architecture.modules
    unfit = dict.fromkeys(transposed_paths(converted, architecture), "a transposed linear")
    unfit |= {m.path: "an embedding" for m in modules if m.kind == "embedding"}
    for path, linear in converted.linears.items():
        if path in unfit:
            raise UnsupportedFeatureError(
                f"compressed-tensors has no int8 form of {unfit[path]}", file=converted.folder, tensor=linear.weight.name,
                hint="export it --to dense",
            )  # fmt: skip
    columns = [path for path, linear in converted.linears.items() if linear.outliers]
    if columns and not fold:
        raise ArgumentError(
            "compressed-tensors has no outlier columns", file=converted.folder,
            found=f"{len(columns)} linears with outlier columns, such as {columns[0]}",
            hint="--fold-outliers quantizes them too and says what that costs",
        )  # fmt: skip


def _folded(linear: QuantizedLinear, costs: dict[str, float | None]) -> Part:
    """A linear quantized again, by the rule of the format without columns; the error is against its own dequantized values."""
    out, inner = linear.out_features, linear.in_features
    codes = TensorSpec(linear.weight.name, "I8", (out, inner))
    scale = TensorSpec(linear.scale.name, "F32", (out, 1))

    def blocks() -> Iterator[Block]:
        sample = RowSample(out, inner)
        quantizer = RowQuantizer("F32", np.empty(0, np.int32), sample=sample)
        for first, values in dequantized_blocks(linear, BLOCK_ELEMENTS):
            rows = quantizer.quantize(values.view(np.uint32), first)
            yield codes.name, first * inner, rows.codes
            yield scale.name, first * rows.scale.itemsize, rows.scale
        costs[linear.path] = sample.sqnr_db

    return Part((codes, scale), blocks)
