"""FP8 weights (arXiv:2209.05433) with separate scales: value = fp32(code * scale). Scales of four-bit weights are found here too."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...errors import CompanionError, ShapeError, UnsupportedDtypeError
from ..safetensors.dtypes import (
    FLOAT_DTYPES,
    FOUR_BIT_DTYPES,
    SCALED_DTYPES,
    widened,
)
from ..safetensors.stored import StoredTensor, read_array
from .checkpoint import CONFIG_FILE, Checkpoint

SCALE_DTYPES: Final = (*FLOAT_DTYPES, "F8_E8M0")
SCALE_SUFFIXES: Final = ("_scale_inv", "_scale")
"""Suffixes of a weight's name. Both are multiplied, despite the name of the first (DeepSeek-V3, README_WEIGHTS)."""
_WEIGHT: Final = ".weight"
_SCALE: Final = ".scale"
"""Replaces ``.weight`` in DeepSeek-V4."""

_USUAL_BLOCK: Final = (128, 128)
_SECTIONS: Final = ("quantization_config", "compression_config", "quantization")
_PARTS: Final = ("text_config", "llm_config", "language_config")
"""Section of a composite model's config that may say how its text model is quantized."""


@dataclass(frozen=True)
class BlockScales:
    """One scale per block of ``rows`` x ``columns`` of a weight."""

    tensor: StoredTensor
    shape: tuple[int, int]
    """Number of blocks vertically and horizontally; the tensor may have fewer axes."""
    rows: int
    columns: int

    def values(self) -> npt.NDArray[np.float32]:
        """Scales in float32, of shape ``shape``."""
        stored = read_array(self.tensor)
        if self.tensor.dtype == "F8_E8M0":  # a power of two; 255 is NaN
            stored = np.where(stored == 255, np.nan, np.ldexp(1.0, stored.astype(np.int32) - 127))
        return widened(stored, self.tensor.dtype).reshape(self.shape)


def quantization_sections(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The sections of a config that say how its weights are quantized, by key."""
    parts: list[tuple[str, Any]] = [("", config), *((f"{n}.", config.get(n)) for n in _PARTS)]
    for name, part in parts:
        for key in _SECTIONS if isinstance(part, dict) else ():
            if part.get(key):
                yield name + key, part[key]


def find_scales(checkpoint: Checkpoint, weight: StoredTensor) -> BlockScales:
    """The scales of an FP8 or four-bit weight ``[out, in]``, from any shard.

    One per tensor (a scalar), per row (``[out]`` or ``[out, 1]``) or per block, whose size is ``weight_block_size`` or
    ``block_structure`` in the config, or 128 x 128 by default.

    Raises:
        CompanionError: there are none, or their shape does not fit.
        UnsupportedDtypeError: they are not floats.
        ShapeError: the weight is not a matrix.
    """
    if len(weight.shape) != 2:
        raise ShapeError("an FP8 weight is not a matrix", file=weight.file, tensor=weight.name,
                         expected="[out, in]", found=list(weight.shape),
                         hint="use a checkpoint in 16 bits")  # fmt: skip
    scale = scale_tensor(checkpoint, weight.name)
    if scale is None:
        raise CompanionError("an FP8 weight has no scales", file=weight.file, tensor=weight.name,
                             expected=" or ".join(_scale_names(weight.name)))  # fmt: skip
    if scale.dtype not in SCALE_DTYPES:
        raise UnsupportedDtypeError("unsupported dtype of a scale", file=scale.file, tensor=scale.name,
                                    expected=" or ".join(SCALE_DTYPES), found=scale.dtype)  # fmt: skip
    out, in_features = weight.shape
    if scale.shape in ((), (1,), (1, 1)):
        return BlockScales(scale, (1, 1), max(out, 1), max(in_features, 1))
    if scale.shape in ((out,), (out, 1)):
        return BlockScales(scale, (out, 1), 1, max(in_features, 1))
    if scale.shape[:1] == (out,) and len(scale.shape) == 2:
        groups = scale.shape[1]
        by_columns = weight.dtype in FOUR_BIT_DTYPES or 32 * groups == in_features
        if by_columns and groups and in_features % groups == 0:
            return BlockScales(scale, (out, groups), 1, in_features // groups)
    blocks = {
        (-(-out // rows), -(-in_features // columns)): (rows, columns)
        for rows, columns in _block_sizes(checkpoint) or [_USUAL_BLOCK]
    }
    if scale.shape not in blocks:
        shapes = " or ".join(str(list(shape)) for shape in blocks)
        raise CompanionError(
            "scales do not fit their weight", file=scale.file, tensor=scale.name,
            expected=f"[], [{out}], [{out}, 1] or {shapes}", found=list(scale.shape),
        )  # fmt: skip
    counts = (scale.shape[0], scale.shape[1])
    return BlockScales(scale, counts, *blocks[counts])


def scale_tensor(checkpoint: Checkpoint, weight: str) -> StoredTensor | None:
    """The tensor with the scales of a weight, if there is one."""
    found = (checkpoint.tensors.get(name) for name in _scale_names(weight))
    return next((tensor for tensor in found if tensor is not None), None)


def scaled_weight(tensors: Mapping[str, StoredTensor], scale: str) -> StoredTensor | None:
    """The weight whose scales are in the tensor ``scale``, if there is one."""
    names = [scale.removesuffix(s) for s in SCALE_SUFFIXES if scale.endswith(s)]
    if scale.endswith(_SCALE):
        names.append(scale.removesuffix(_SCALE) + _WEIGHT)
    found = (tensors.get(name) for name in names)
    return next((x for x in found if x is not None and x.dtype in SCALED_DTYPES), None)


def _scale_names(weight: str) -> list[str]:
    names = [weight + suffix for suffix in SCALE_SUFFIXES]
    return [*names, weight.removesuffix(_WEIGHT) + _SCALE] if weight.endswith(_WEIGHT) else names


def _block_sizes(checkpoint: Checkpoint) -> list[tuple[int, int]]:
    """Block sizes in the config: DeepSeek's for the whole model, compressed-tensors' for each group of linears."""
    sizes = []
    for key, section in quantization_sections(checkpoint.config):
        if not isinstance(section, dict):
            continue
        sizes.append(("weight_block_size", section.get("weight_block_size")))
        groups = section.get("config_groups")
        for group in groups.values() if isinstance(groups, dict) else ():
            weights = group.get("weights") if isinstance(group, dict) else None
            if isinstance(weights, dict):
                sizes.append((f"block_structure in {key}", weights.get("block_structure")))
    return [_block_size(checkpoint, *size) for size in sizes if size[1] is not None]


def _block_size(checkpoint: Checkpoint, key: str, size: object) -> tuple[int, int]:
    if isinstance(size, str) and re.fullmatch(r"\d{1,9}x\d{1,9}", size, re.ASCII):
        size = [int(n) for n in size.split("x")]  # as written by older releases
    if (
        isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)
    ):  # fmt: skip
        return size[0], size[1]
    raise CompanionError(f"malformed {key}", file=checkpoint.folder / CONFIG_FILE,
                         expected="two sizes above 0", found=size)  # fmt: skip


@cache
def decoded(dtype: str) -> npt.NDArray[np.float32]:
    """The value of each of the 256 codes."""
    codes = np.arange(256)
    if dtype == "F8_E5M2":  # the upper byte of an F16
        return (codes << 8).astype(np.uint16).view(np.float16).astype(np.float32)
    exponent, fraction = (codes >> 3) & 15, (codes & 7) / 8
    normal = np.ldexp(1 + fraction, exponent - 7)
    value = np.where(exponent > 0, normal, np.ldexp(fraction, -6))
    value[(codes & 0x7F) == 0x7F] = np.nan  # E4M3 has no infinities, and one NaN per sign
    signed: npt.NDArray[Any] = np.where(codes & 0x80, -value, value)
    return signed.astype(np.float32)
