"""Weights packed by another quantizer, recognized by tensor names and dtypes, and the checkpoint they were made from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ..int8.names import QUANT_METHOD, is_padding
from ..regular_file import open_within, read_at_most
from ..safetensors.stored import StoredTensor
from .fp8 import scaled_weight

_MARKS: Final = {
    "SCB": "bitsandbytes",
    "weight_format": "bitsandbytes",
    "absmax": "bitsandbytes",
    "quant_map": "bitsandbytes",
    "bitsandbytes__nf4": "bitsandbytes",
    "bitsandbytes__fp4": "bitsandbytes",
    "qweight": "GPTQ or AWQ",
    "qzeros": "GPTQ or AWQ",
    "g_idx": "GPTQ",
    "weight_packed": "compressed-tensors",
    "weight_zero_point": "compressed-tensors",
    "weight_global_scale": "compressed-tensors (NVFP4)",
    "weight_scale_2": "ModelOpt (NVFP4)",
    "weight_scales": "EETQ",
    "_weight_qdata": "torchao",
    "W_q": "HQQ",
    "Qidxs": "QuIP#",
    "codebooks": "AQLM",
    "q_invperm": "ExLlamaV2",
    "trellis": "ExLlamaV3",
    "weight_scale": "a weight scale",
    "weight_scale_inv": "an FP8 scale",
    "outlier_index": QUANT_METHOD,
    "outlier_weight": QUANT_METHOD,
}
"""Last name components, and the quantizer that uses them."""
_BESIDE_INTEGERS: Final = (
    (".scales", ".biases", "MLX"),
    (".SCB", "", "bitsandbytes"),
    (".weight.absmax", "", "bitsandbytes"),
    (".weight_scales", "", "EETQ"),
    (".weight_scale_2", "", "ModelOpt (NVFP4)"),
    (".weight_scale", "", "integers with a scale"),
    (".scale", "", "integers with a scale"),
)  # fmt: skip
"""Companions of an integer ``*.weight``, and the quantizer they indicate."""

_README: Final = "README.md"
_README_BYTES: Final = 1 << 16
_HUB_ID: Final = r"\w[\w.-]*/\w[\w.-]*"
_BASE: Final = re.compile(
    rf"^base_model:[ \t]*(?:\n[ \t]*-[ \t]*)?[\"']?({_HUB_ID})[\"']?[ \t]*$",
    re.MULTILINE | re.ASCII,
)
_PACKED_NAME: Final = re.compile(
    r"\d-?bit|gptq|awq|gguf|mlx|bnb|exl\d|quant|int\d|fp\d|w\da\d", re.IGNORECASE
)


def packed_by(tensor: StoredTensor, tensors: Mapping[str, StoredTensor]) -> str | None:
    """The quantizer that packed a tensor or the weight it belongs to; None for plain tensors, FP8, ``four_bit`` and their scales."""
    name = tensor.name
    if is_padding(name):
        return QUANT_METHOD
    path, _, last = name.rpartition(".")
    if last in _MARKS:
        return None if scaled_weight(tensors, name) else _MARKS[last]
    if last == "weight" and tensor.dtype.startswith(("I", "U")) and tensor.dtype != "I4":
        for first, second, method in _BESIDE_INTEGERS:
            if path + first in tensors and (not second or path + second in tensors):
                return method
        return f"integers ({tensor.dtype})"
    if last == "_data" and f"{path}._scale" in tensors:
        return "quanto"
    stem = name.removesuffix("_blocks")
    if stem != name and f"{stem}_scales" in tensors and tensor.dtype == "U8":
        return "MXFP4"
    return None


def made_from(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The hub id of the checkpoint that a packed one was made from, from its model card or config; None if unknown."""
    try:
        fd = open_within(folder, _README)
    except OSError:
        card = ""
    else:
        with open(fd, "rb") as file:
            card = read_at_most(file.fileno(), _README_BYTES).decode(errors="replace")
    front = card.split("\n---", 1)[0] if card.startswith("---") else ""
    if found := _BASE.search(front):
        return found[1]
    name = config.get("_name_or_path")
    if isinstance(name, str) and re.fullmatch(_HUB_ID, name, re.ASCII):
        return None if _PACKED_NAME.search(name) else name
    return None
