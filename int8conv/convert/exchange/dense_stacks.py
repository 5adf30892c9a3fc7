"""Experts in stacks, as the files of some families have them: transformers knows no names for single ones there (gpt-oss)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from ...errors import UnsupportedModelError
from ...formats.int8.dequantize import dequantized_blocks
from ...formats.int8.folder import ConvertedFolder, QuantizedLinear
from ...formats.int8.layout import TensorSpec
from ...formats.int8.names import BIAS, WEIGHT
from ...formats.safetensors.dtypes import ITEM_BYTES, widened
from ...formats.safetensors.stored import StoredTensor, read_array
from ...runtime.models.architecture import Architecture
from ..plan import kept_dtype
from ..rounding.float16_bits import round_to_half
from ..stream import to_half
from .parts import BLOCK_ELEMENTS, Block, Part

_NUMBER: Final = re.compile(r"\.[0-9]+\.([^.]+)$")
_BIASES: Final = "_bias"


def stacked_experts(architecture: Architecture | None) -> dict[str, list[str]]:
    """Stack -> paths of its experts in their order; of families whose files hold ``[experts, in, out]``, none of others."""
    found: dict[str, list[str]] = {}
    if architecture is not None and architecture.family.transposed_stacks:
        for module in architecture.modules:
            if module.role.partition(".")[0].isdecimal():
                found.setdefault(_NUMBER.sub(r".\1", module.path), []).append(module.path)
    return found


def stack_parts(
    converted: ConvertedFolder, architecture: Architecture | None, dtype: str
) -> dict[str, Part | None]:
    """By the name of each tensor of an expert: the stack that its first one stands for, None for the others.

    Raises:
        UnsupportedModelError: some experts are kept in 16 bits.
    """
    parts: dict[str, Part | None] = {}
    for stack, paths in stacked_experts(architecture).items():
        missing = [path for path in paths if path not in converted.linears]
        if missing:
            raise UnsupportedModelError(
                "a stack of experts of which some are kept in 16 bits cannot be exported", file=converted.folder,
                tensor=f"{missing[0]}.{WEIGHT}", hint="use the source",
            )  # fmt: skip
        linears = [converted.linears[path] for path in paths]
        parts |= dict.fromkeys(f"{path}.{WEIGHT}" for path in paths)
        parts[f"{paths[0]}.{WEIGHT}"] = _weights(stack, linears, dtype)
        biases = [linear.bias for linear in linears if linear.bias is not None]
        if len(biases) == len(linears):
            parts |= dict.fromkeys(f"{path}.{BIAS}" for path in paths)
            parts[f"{paths[0]}.{BIAS}"] = _biases(stack + _BIASES, biases, dtype)
    return parts


def _weights(name: str, linears: Sequence[QuantizedLinear], dtype: str) -> Part:
    """One expert's matrix is in memory at a time."""
    out, inner = linears[0].out_features, linears[0].in_features
    kinds = {"F16": np.uint16, "BF16": np.uint16, "F32": np.float32}

    def blocks() -> Iterator[Block]:
        for number, linear in enumerate(linears):
            turned = np.empty((inner, out), kinds[dtype])
            for first, values in dequantized_blocks(linear, BLOCK_ELEMENTS):
                if dtype != "F32":
                    values = to_half(linear.weight, values, dtype, first)[0]
                turned[:, first : first + len(values)] = values.T
            yield name, number * turned.nbytes, turned

    return Part((TensorSpec(name, dtype, (len(linears), inner, out)),), blocks)


def _biases(name: str, biases: Sequence[StoredTensor], dtype: str) -> Part:
    half = biases[0].dtype in ("F16", "BF16")
    kind = dtype if half else kept_dtype(name, biases[0], dtype)
    size = biases[0].shape[0]

    def blocks() -> Iterator[Block]:
        for number, bias in enumerate(biases):
            values = read_array(bias)[None]
            if bias.dtype != kind:
                wide = widened(values, bias.dtype)
                values = wide if kind == "F32" else round_to_half(wide, kind)[0]
            yield name, number * size * ITEM_BYTES[kind], values

    return Part((TensorSpec(name, kind, (len(biases), size)),), blocks)


def check_no_known_stacks(
    converted: ConvertedFolder, architecture: Architecture | None, tool: str
) -> None:
    """Raise UnsupportedModelError if another tool has no names for single experts."""
    stacks: Mapping[str, Sequence[str]] = stacked_experts(architecture)
    if stacks:
        raise UnsupportedModelError(
            f"{tool} has no names for single experts of this family", file=converted.folder,
            tensor=next(iter(stacks)), hint="export it --to dense",
        )  # fmt: skip
