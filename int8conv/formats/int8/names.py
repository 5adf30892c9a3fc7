"""Tensor names of a quantized linear (SPEC.md section 1)."""

from __future__ import annotations

from typing import Final

VERSION: Final = 1
QUANT_METHOD: Final = "int8conv"
MANIFEST_FILE: Final = "int8conv.json"
PADDING_PREFIX: Final = "int8conv.padding."
METADATA: Final = {"format": QUANT_METHOD, "version": str(VERSION)}

TEMPLATES_FOLDER: Final = "additional_chat_templates"
"""The only subfolder of a converted folder: additional chat templates of the source."""

OUTLIER_MULTIPLE: Final = 16
"""k is a multiple of this: kernels read this many outlier columns at a time."""

SMALLEST_SCALE: Final = 2.0**-126
"""Smallest scale of a row that is not all zeros: the smallest normal float32."""

MOST_STEPS: Final = 4
"""Largest distance of a compensated code from the one that is nearest to the weight, in steps of the row scale."""

WEIGHT: Final = "weight"
SCALE: Final = "weight_scale"
OUTLIER_INDEX: Final = "outlier_index"
OUTLIER_WEIGHT: Final = "outlier_weight"
BIAS: Final = "bias"
KINDS: Final = (WEIGHT, SCALE, OUTLIER_INDEX, OUTLIER_WEIGHT, BIAS)
"""In the order of a group's runs in a shard."""


def shard_name(number: int, count: int) -> str:
    """File name of shard ``number`` (from 1) of ``count``."""
    return f"model-{number:05}-of-{count:05}.safetensors"


def is_plain_file_name(name: str) -> bool:
    """Whether a file name is valid and stays within its folder."""
    if name in ("", ".", "..") or set(name) & set("/\\\0"):
        return False
    return len(name.encode(errors="replace")) <= 255


def is_recorded_name(name: str) -> bool:
    """Whether a manifest may list a file of that name: directly in the folder, or in the folder of chat templates."""
    return is_plain_file_name(name.removeprefix(f"{TEMPLATES_FOLDER}/"))


def is_padding(name: str) -> bool:
    return name.startswith(PADDING_PREFIX)
