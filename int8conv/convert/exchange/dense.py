"""A plain checkpoint of a converted folder: every weight dequantized, names and orientation as the source had them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...errors import UnsupportedModelError
from ...formats.int8.dequantize import dequantized_blocks
from ...formats.int8.folder import ConvertedFolder, QuantizedLinear
from ...formats.int8.layout import TensorSpec
from ...formats.int8.section import SECTION
from ...formats.safetensors.dtypes import INFINITY_BITS, ITEM_BYTES
from ...formats.safetensors.stored import StoredTensor
from ...formats.source.checkpoint import CONFIG_FILE
from ...formats.source.matrix import MatrixReader, as_rows
from ...runtime.models.architecture import Architecture, read_architecture
from ..by_name.generic import is_conv1d
from ..plan import kept_dtype
from ..rounding.float16_bits import widen
from ..stream import to_half
from .dense_stacks import stack_parts
from .parts import BLOCK_ELEMENTS, Block, Part, copied

DTYPES: Final = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
_DTYPE_KEYS: Final = ("dtype", "torch_dtype")
"""In a config; the first one is that of transformers 5."""


def dense_parts(converted: ConvertedFolder, dtype: str) -> Iterator[Part]:
    """The tensors of a plain checkpoint.

    What is float is rounded to ``dtype`` once, from its float32 value; only float32 tensors that are no matrices stay float32.

    Args:
        converted: the folder.
        dtype: F16, BF16 or F32.

    Raises:
        UnsupportedModelError: the source's stacks of experts cannot be put together again.
    """
    check_no_stacks(converted)
    architecture = known_architecture(converted)
    turned = transposed_paths(converted, architecture)
    stacks = stack_parts(converted, architecture, dtype)
    companions = {
        t.name
        for x in converted.linears.values()
        for t in x.tensors()
        if t not in (x.weight, x.bias)
    }
    for name, tensor in converted.checkpoint.tensors.items():
        path = name.rpartition(".")[0]
        if name in companions:
            continue
        if name in stacks:
            if (stack := stacks[name]) is not None:
                yield stack
            continue
        linear = converted.linears.get(path)
        if linear is not None and tensor is linear.weight:
            yield _weight(linear, dtype, transposed=path in turned)
        else:
            half = tensor.dtype in ("F16", "BF16")
            yield _kept(tensor, dtype if half else kept_dtype(name, tensor, dtype))


def dense_config(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The source's config with that dtype (``"float16"``), without the quantization."""
    plain = {name: value for name, value in config.items() if name != SECTION}
    named = [key for key in _DTYPE_KEYS if key in plain]
    return plain | dict.fromkeys(named or _DTYPE_KEYS[1:], dtype)


def usual_dtype(config: Mapping[str, Any]) -> str:
    """The dtype that the config names, or else float16."""
    named = (config.get(key) for key in _DTYPE_KEYS)
    return next((str(dtype) for dtype in named if dtype in DTYPES), "float16")


def check_no_stacks(converted: ConvertedFolder) -> None:
    """Refuse experts that are one tensor in the source, of a family whose names for single experts are not known."""
    stacked = [name for name in converted.manifest.source.get("tensors", ()) if name.endswith("]")]
    if stacked:
        raise UnsupportedModelError(
            "stacks of experts of an unknown family cannot be exported", file=converted.folder,
            tensor=stacked[0], hint="use the source",
        )  # fmt: skip


def known_architecture(converted: ConvertedFolder) -> Architecture | None:
    """None for a family that the runtime does not know."""
    try:
        return read_architecture(
            converted.config, converted.checkpoint.tensors, converted.folder / CONFIG_FILE
        )
    except UnsupportedModelError:
        return None


def transposed_paths(converted: ConvertedFolder, architecture: Architecture | None) -> set[str]:
    """Linears that the source stores as ``[in, out]``: GPT-2's."""
    if architecture is None:
        return {path for path in converted.linears if is_conv1d(converted.config, path)}
    return {module.path for module in architecture.modules if module.transposed}


def _weight(linear: QuantizedLinear, dtype: str, *, transposed: bool) -> Part:
    out, inner = linear.out_features, linear.in_features
    shape = (inner, out) if transposed else (out, inner)
    name, item = linear.weight.name, ITEM_BYTES[dtype]

    def blocks() -> Iterator[Block]:
        for first, values in dequantized_blocks(linear, BLOCK_ELEMENTS):
            rounded = _rounded(linear.weight, values, dtype, first)
            if not transposed:
                yield name, first * inner * item, rounded
                continue
            for row, strip in enumerate(rounded.T):
                yield name, (row * out + first) * item, strip

    return Part((TensorSpec(name, dtype, shape),), blocks)


def _kept(tensor: StoredTensor, dtype: str) -> Part:
    if tensor.dtype == dtype or tensor.dtype not in INFINITY_BITS:
        return copied(tensor)
    matrix = as_rows(tensor, BLOCK_ELEMENTS)

    def blocks() -> Iterator[Block]:
        row_bytes = matrix.shape[1] * ITEM_BYTES[dtype]
        for first, bits in MatrixReader(matrix, BLOCK_ELEMENTS).blocks():
            values = widen(bits, tensor.dtype, np.empty(bits.shape, np.float32))
            yield tensor.name, first * row_bytes, _rounded(tensor, values, dtype, first)

    return Part((TensorSpec(tensor.name, dtype, tensor.shape),), blocks)


def _rounded(
    tensor: StoredTensor, values: npt.NDArray[np.float32], dtype: str, first: int
) -> npt.NDArray[Any]:
    """Values ``[rows, columns]`` in the numpy form of ``dtype``."""
    return values if dtype == "F32" else to_half(tensor, values, dtype, first)[0]
