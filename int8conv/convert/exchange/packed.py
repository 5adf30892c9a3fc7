"""Int8 weights of other quantizers, recognized by the tensors beside them: bitsandbytes and compressed-tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...errors import AlreadyQuantizedError, ArgumentError, CompanionError, NumberError
from ...formats.int8.names import QUANT_METHOD, SCALE, SMALLEST_SCALE, WEIGHT
from ...formats.safetensors.dtypes import widened
from ...formats.safetensors.stored import StoredTensor, read_array
from ...formats.source.checkpoint import Checkpoint
from ...formats.source.checks import check_plain
from ...formats.source.fp8 import quantization_sections
from ...runtime.models.expert_stacks import take_apart
from ..outliers.selection import ACTIVATION_SCALES

BITSANDBYTES: Final = "bitsandbytes"
COMPRESSED_TENSORS: Final = "compressed-tensors"
_ABSMAX: Final = "SCB"
_FORMAT: Final = "weight_format"
_SCALE_DTYPES: Final = ("F32", "F16", "BF16")
_STATIC: Final = (*ACTIVATION_SCALES, ".input_zero_point", ".output_zero_point")


@dataclass(frozen=True)
class PackedLinear:
    """The tensors of one linear ``[out, in]``."""

    weight: StoredTensor
    """I8 ``[out, in]``."""
    scale: StoredTensor
    """A float per row, or one for all."""
    absmax: bool
    """Whether that is the largest magnitude of a row, which is 127 scales."""

    def scales(self) -> npt.NDArray[np.float32]:
        """The row scales ``[out]``; a largest magnitude divided by 127, in one float32 division rounded to nearest even.

        Raises:
            NumberError: one is no scale of the format.
        """
        values = widened(read_array(self.scale), self.scale.dtype).reshape(-1)
        rows = np.broadcast_to(values, self.weight.shape[:1])
        scale: npt.NDArray[np.float32] = rows / np.float32(127 if self.absmax else 1) + np.float32(0)  # fmt: skip
        bad = ~(np.isfinite(scale) & ((scale >= SMALLEST_SCALE) | (rows == 0)))
        if bad.any():
            row = int(bad.argmax())
            raise NumberError(
                f"the scale of row {row} is not one that the format allows", file=self.scale.file, tensor=self.scale.name,
                expected="0, or at least 2^-126 and finite", found=scale[row],
            )  # fmt: skip
        return scale


@dataclass(frozen=True)
class Packed:
    """A checkpoint whose linears are int8 already."""

    quantizer: str
    linears: dict[str, PackedLinear]
    """By module path."""
    plain: Checkpoint
    """The same checkpoint as one in 16 bits: int8 weights are called F16, what belongs to the quantizer is left out."""
    threshold: float | None
    """Magnitude from which the quantizer multiplies activations in 16 bits; None: none."""
    skipped: dict[str, str]
    """Tensors left out, and why."""


def find_packed(checkpoint: Checkpoint) -> Packed:
    """The int8 weights of a checkpoint.

    Raises:
        ArgumentError: it is not quantized, or a converted folder.
        AlreadyQuantizedError: the weights are packed in another way.
        CompanionError: an int8 weight and its scales do not match.
        CheckpointError: as for a source of ``convert``.
    """
    section = _section(checkpoint)
    if section.get("quant_method") == QUANT_METHOD:
        raise ArgumentError("nothing to import: an int8conv folder", file=checkpoint.folder)
    tensors = checkpoint.tensors
    quantizer = BITSANDBYTES if any(n.endswith(f".{_ABSMAX}") for n in tensors) else COMPRESSED_TENSORS  # fmt: skip
    known = quantizer == BITSANDBYTES or section.get("quant_method") == COMPRESSED_TENSORS
    linears = dict(_linears(checkpoint, quantizer)) if known else {}
    config = {k: v for k, v in checkpoint.config.items() if k not in dict(quantization_sections(checkpoint.config))}  # fmt: skip
    own = {x.scale.name for x in linears.values()} | {f"{path}.{_FORMAT}" for path in linears}
    skipped = {name: "a scale of static activations; int8conv's are per token"
               for name in tensors if linears and name.endswith(_STATIC)}  # fmt: skip
    left = {name: tensor for name, tensor in tensors.items() if name not in own | skipped.keys()}
    for linear in linears.values():
        left[linear.weight.name] = linear.weight._replace(dtype="F16")
    if not linears:
        check_plain(checkpoint)
        raise ArgumentError("nothing to import: the weights are not quantized", file=checkpoint.folder,
                            hint="use 'int8conv convert'")  # fmt: skip
    plain = replace(checkpoint, config=config, tensors=left)
    check_plain(plain)
    threshold = _threshold(section) if quantizer == BITSANDBYTES else None
    return Packed(quantizer, linears, take_apart(plain), threshold, skipped)


def _threshold(section: dict[str, Any]) -> float | None:
    value = section.get("llm_int8_threshold")
    if isinstance(value, int | float) and 0 < value < np.inf:
        return float(value)
    return None


def _section(checkpoint: Checkpoint) -> dict[str, Any]:
    for _, section in quantization_sections(checkpoint.config):
        if isinstance(section, dict):
            return section
    return {}


def _linears(checkpoint: Checkpoint, quantizer: str) -> Iterator[tuple[str, PackedLinear]]:
    """Every int8 weight with its scales; float weights with scales of their own (FP8) are not among them."""
    absmax = quantizer == BITSANDBYTES
    kind = _ABSMAX if absmax else SCALE
    for name, scale in checkpoint.tensors.items():
        path, _, last = name.rpartition(".")
        if last != kind:
            continue
        weight = checkpoint.tensors.get(f"{path}.{WEIGHT}")
        if weight is None or weight.dtype != "I8" or len(weight.shape) != 2:
            if not absmax and weight is not None and weight.dtype.startswith("F8"):
                continue
            raise CompanionError("no int8 matrix beside its scales", file=scale.file, tensor=name,
                                 expected=f"{path}.{WEIGHT} I8 [out, in]",
                                 found=f"{weight.dtype} {list(weight.shape)}" if weight else "no such tensor")  # fmt: skip
        shapes = [(weight.shape[0],)] if absmax else [(weight.shape[0], 1), weight.shape[:1], (1,), ()]  # fmt: skip
        if scale.shape not in shapes or scale.dtype not in _SCALE_DTYPES:
            raise CompanionError(
                "scales that cannot be imported", file=scale.file, tensor=name,
                expected=f"a float per row, {list(shapes[0])}", found=f"{scale.dtype} {list(scale.shape)}",
            )  # fmt: skip
        if absmax:
            _check_row_major(checkpoint, path)
        yield path, PackedLinear(weight, scale, absmax)


def _check_row_major(checkpoint: Checkpoint, path: str) -> None:
    """bitsandbytes had three more orders, for GPUs before Hopper; releases since 0.44 write none of them."""
    order = checkpoint.tensors.get(f"{path}.{_FORMAT}")
    if order is not None and (order.nbytes != 1 or read_array(order).item() != 0):
        raise AlreadyQuantizedError(
            "int8 weights in an order for certain GPUs", file=order.file, tensor=order.name,
            expected="0 (row-major)", found=read_array(order).reshape(-1)[:4].tolist(),
            hint="save the model again with a newer bitsandbytes",
        )  # fmt: skip
