"""What a source checkpoint must not be: quantized already."""

from __future__ import annotations

from typing import Final

from ...errors import AlreadyQuantizedError
from ..int8.names import QUANT_METHOD, is_padding
from .checkpoint import CONFIG_FILE, Checkpoint
from .fp8 import FP8_DTYPES

_MARKS = {
    "SCB": "bitsandbytes",
    "weight_format": "bitsandbytes",
    "absmax": "bitsandbytes",
    "qweight": "GPTQ or AWQ",
    "qzeros": "GPTQ or AWQ",
    "weight_packed": "compressed-tensors",
    "weight_scale": "a weight scale",
    "weight_scale_inv": "an FP8 scale",
    "weight_zero_point": "compressed-tensors",
    "outlier_index": QUANT_METHOD,
    "outlier_weight": QUANT_METHOD,
}


_FP8_METHODS: Final = {"fp8", "fbgemm_fp8", "compressed-tensors", "modelopt"}
"""Methods by which a config may announce FP8 weights; the tensors show whether it is them."""


def check_not_quantized(checkpoint: Checkpoint) -> None:
    """Raise AlreadyQuantizedError, with the method's name, if the config or a tensor's name says so.

    FP8 weights with their scales are not that: they are floats still.
    """
    hint = "give the checkpoint it was made from"
    for key in ("quantization_config", "compression_config"):
        section = checkpoint.config.get(key)
        if section:
            method = section.get("quant_method") if isinstance(section, dict) else None
            if isinstance(method, str) and method in _FP8_METHODS:
                continue
            raise AlreadyQuantizedError(
                "the source is quantized already", file=checkpoint.folder / CONFIG_FILE,
                expected=f"no {key}", found=f"quant_method {method!r}", hint=hint,
            )  # fmt: skip
    for name, tensor in checkpoint.tensors.items():
        method = QUANT_METHOD if is_padding(name) else _MARKS.get(name.rpartition(".")[2])
        if method is not None and not _is_fp8_scale(checkpoint, name):
            raise AlreadyQuantizedError("the source is quantized already", file=tensor.file,
                                        tensor=name, found=method, hint=hint)  # fmt: skip


def _is_fp8_scale(checkpoint: Checkpoint, name: str) -> bool:
    weight = checkpoint.tensors.get(name.removesuffix("_inv").removesuffix("_scale"))
    return weight is not None and weight.dtype in FP8_DTYPES
