"""FP8 weights (arXiv:2209.05433) and the scales that stand beside them: value = fp32(code * scale)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...errors import CompanionError, UnsupportedDtypeError
from ..safetensors.dtypes import FLOAT_DTYPES
from ..safetensors.stored import StoredTensor, read_array
from .checkpoint import CONFIG_FILE, Checkpoint

FP8_DTYPES: Final = ("F8_E4M3", "F8_E5M2")
SCALE_SUFFIXES: Final = ("_scale_inv", "_scale")
"""After a weight's name. Both are multiplied with, whatever the first one's name says (DeepSeek-V3, README_WEIGHTS)."""

_USUAL_BLOCK: Final = 128


@dataclass(frozen=True)
class BlockScales:
    """A scale for each block of ``rows`` x ``columns`` of a weight."""

    tensor: StoredTensor
    shape: tuple[int, int]
    """Blocks down and across; the tensor may have fewer axes."""
    rows: int
    columns: int

    def values(self) -> npt.NDArray[np.float32]:
        """Float32 of ``shape``."""
        stored = read_array(self.tensor)
        if self.tensor.dtype == "BF16":
            stored = (stored.astype(np.uint32) << 16).view(np.float32)
        return stored.astype(np.float32).reshape(self.shape)


def find_scales(checkpoint: Checkpoint, weight: StoredTensor) -> BlockScales:
    """The scales of an FP8 weight ``[out, in]``, in whichever shard they are.

    One for the tensor (a scalar), one a row (``[out]`` or ``[out, 1]``), or one a block, whose size is the config's
    ``weight_block_size`` or else 128 x 128.

    Raises:
        CompanionError: there are none, or their shape does not fit.
        UnsupportedDtypeError: they are no floats.
    """
    scale = scale_tensor(checkpoint, weight.name)
    if scale is None:
        raise CompanionError("an FP8 weight without scales", file=weight.file, tensor=weight.name,
                             expected=" or ".join(weight.name + s for s in SCALE_SUFFIXES))  # fmt: skip
    if scale.dtype not in FLOAT_DTYPES:
        raise UnsupportedDtypeError("unsupported dtype of a scale", file=scale.file, tensor=scale.name,
                                    expected=" or ".join(FLOAT_DTYPES), found=scale.dtype)  # fmt: skip
    out, in_features = weight.shape
    if scale.shape in ((), (1,), (1, 1)):
        return BlockScales(scale, (1, 1), max(out, 1), max(in_features, 1))
    if scale.shape in ((out,), (out, 1)):
        return BlockScales(scale, (out, 1), 1, max(in_features, 1))
    rows, columns = _block_size(checkpoint)
    blocks = (-(-out // rows), -(-in_features // columns))
    if scale.shape != blocks:
        raise CompanionError(
            "scales do not fit their weight", file=scale.file, tensor=scale.name,
            expected=f"[], [{out}], [{out}, 1] or {list(blocks)}", found=list(scale.shape),
        )  # fmt: skip
    return BlockScales(scale, blocks, rows, columns)


def scale_tensor(checkpoint: Checkpoint, weight: str) -> StoredTensor | None:
    """The scales of a weight of that name, if there are any."""
    found = (checkpoint.tensors.get(weight + suffix) for suffix in SCALE_SUFFIXES)
    return next((tensor for tensor in found if tensor is not None), None)


def _block_size(checkpoint: Checkpoint) -> tuple[int, int]:
    section = checkpoint.config.get("quantization_config")
    size = section.get("weight_block_size") if isinstance(section, dict) else None
    if size is None:
        return _USUAL_BLOCK, _USUAL_BLOCK
    if not (
        isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)
    ):
        raise CompanionError("malformed weight_block_size", file=checkpoint.folder / CONFIG_FILE,
                             expected="two sizes above 0", found=size)  # fmt: skip
    return size[0], size[1]


@cache
def decoded(dtype: str) -> npt.NDArray[np.float32]:
    """The value of each of the 256 codes."""
    codes = np.arange(256)
    if dtype == "F8_E5M2":  # the upper half of an F16
        return (codes << 8).astype(np.uint16).view(np.float16).astype(np.float32)
    exponent, fraction = (codes >> 3) & 15, (codes & 7) / 8
    normal = np.ldexp(1 + fraction, exponent - 7)
    value = np.where(exponent > 0, normal, np.ldexp(fraction, -6))
    value[(codes & 0x7F) == 0x7F] = np.nan  # E4M3 has no infinities, and one NaN a sign
    signed: npt.NDArray[Any] = np.where(codes & 0x80, -value, value)
    return signed.astype(np.float32)
