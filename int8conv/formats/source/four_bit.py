"""Weights with four bits per element, with a scale per group of columns: value = fp32(code * scale).

- FP4 (E2M1) with E8M0 scales of 32 columns (OCP Microscaling Formats 1.0, sections 5.3.3, 5.4 and 6.3, "MXFP4"): as stacks
  ``P_blocks [experts, out, in / 32, 16]`` with ``P_scales`` (gpt-oss), as I8 ``P.weight [out, in / 2]`` with ``P.scale``
  (DeepSeek-V4), or as U8 ``P.weight_packed`` with ``P.weight_scale`` (compressed-tensors).
- INT4, stored plus 8, eight in an I32 of ``P.weight_packed [out, in / 8]``, with ``P.weight_scale`` (compressed-tensors'
  pack-quantized, Kimi K2 Thinking).

E8M0 scales that a file calls U8 become E8M0 here, those of FP8 weights too ("MXFP8").
In all of them a byte has column 2 i in its lower half and column 2 i + 1 in its upper half. ``unpacked`` gives them the names and
shapes of plain weights and the dtype F4 or I4; nothing is read. Everything else about them is as with FP8 (``fp8``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

from ..safetensors.dtypes import FLOAT_DTYPES
from ..safetensors.stored import StoredTensor
from .checkpoint import Checkpoint
from .fp8 import SCALE_SUFFIXES, quantization_sections, scale_tensor, scaled_weight

SHAPE_SUFFIX: Final = "_shape"
"""Of a weight's name: its shape as compressed-tensors stores it next to packed codes."""
_WEIGHT: Final = ".weight"
_PACKED: Final = "_packed"
_BLOCKS, _SCALES = "_blocks", "_scales"
_EXPONENTS: Final = ("F8_E8M0", "U8")
"""Dtypes of E8M0 scales; older programs have none of their own for them."""
_GROUP: Final = 32
_OTHERS: Final = ("_zero_point", "_g_idx", "_global_scale")
"""Suffixes of tensors that give packed weights another meaning."""
_VALUES: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def unpacked(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with such weights under their plain names and shapes; unchanged if there are none."""
    tensors = checkpoint.tensors
    suspects = [t for t in tensors.values() if t.dtype in ("U8", "I8", "I32")]
    if not suspects:
        return checkpoint
    integers = _has_four_bit_integers(checkpoint)
    found = dict(pair for tensor in suspects for pair in _plain(checkpoint, tensor, integers))
    if not found:
        return checkpoint
    plain_ones = [found.get(name, tensor) for name, tensor in tensors.items()]
    return replace(checkpoint, tensors={tensor.name: tensor for tensor in plain_ones})


def _plain(
    checkpoint: Checkpoint, tensor: StoredTensor, integers: bool
) -> Iterator[tuple[str, StoredTensor]]:
    """The tensors that a suspect stands for, by their names in the file: itself and its scales; none if it is another thing."""
    name, shape = tensor.name, tensor.shape
    stack = name.removesuffix(_BLOCKS)
    if stack != name and tensor.dtype == "U8" and len(shape) == 4 and 2 * shape[3] == _GROUP:
        scale = checkpoint.tensors.get(stack + _SCALES)
        if scale is not None and scale.dtype in _EXPONENTS and scale.shape == shape[:3]:
            full = (shape[0], shape[1], shape[2] * _GROUP)
            yield name, tensor._replace(name=stack, dtype="F4", shape=full)
            yield scale.name, scale._replace(name=stack + SCALE_SUFFIXES[1], dtype="F8_E8M0")
        return
    if tensor.dtype == "U8" and scaled_weight(checkpoint.tensors, name) is not None:
        yield name, tensor._replace(dtype="F8_E8M0")
        return
    weight = name.removesuffix(_PACKED)
    if not weight.endswith(_WEIGHT) or len(shape) != 2:
        return
    scale = scale_tensor(checkpoint, weight)
    if scale is None or any(weight + other in checkpoint.tensors for other in _OTHERS):
        return
    if tensor.dtype == "I32":
        if weight != name and integers and scale.dtype in FLOAT_DTYPES:
            yield name, tensor._replace(name=weight, dtype="I4", shape=(shape[0], 8 * shape[1]))
    elif scale.dtype in _EXPONENTS and scale.shape == (shape[0], 2 * shape[1] // _GROUP):
        yield name, tensor._replace(name=weight, dtype="F4", shape=(shape[0], 2 * shape[1]))
        yield scale.name, scale._replace(dtype="F8_E8M0")


def _has_four_bit_integers(checkpoint: Checkpoint) -> bool:
    """Whether the config describes symmetric INT4 and nothing else, which the tensors alone do not show."""
    groups = [
        group.get("weights")
        for _, section in quantization_sections(checkpoint.config) if isinstance(section, dict)
        for group in (section.get("config_groups") or {}).values() if isinstance(group, dict)
    ]  # fmt: skip
    return bool(groups) and all(
        isinstance(weights, dict)
        and (weights.get("num_bits"), weights.get("type", "int")) == (4, "int")
        and weights.get("symmetric", True) is True
        for weights in groups
    )


@cache
def pairs(dtype: str) -> npt.NDArray[np.float32]:
    """The two values of each byte, ``[256, 2]``."""
    if dtype == "I4":
        values = np.arange(16, dtype=np.float32) - 8
    else:
        values = np.array([*_VALUES, *(-value for value in _VALUES)], np.float32)
    codes = np.arange(256)
    return np.stack([values[codes & 15], values[codes >> 4]], axis=1)
