"""Checkpoints as bitsandbytes and compressed-tensors save them, written from the layouts of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...checkpoints import LLAMA, random_tensors, write_checkpoint

BITSANDBYTES: dict[str, Any] = {
    "quant_method": "bitsandbytes", "load_in_8bit": True, "_load_in_8bit": True, "llm_int8_threshold": 6.0,
    "llm_int8_skip_modules": None,
}  # fmt: skip
COMPRESSED: dict[str, Any] = {
    "quant_method": "compressed-tensors", "format": "int-quantized", "quantization_status": "compressed", "ignore": ["lm_head"],
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", "strategy": "channel",
                                                                     "symmetric": True}}},
}  # fmt: skip


def bitsandbytes_tensors(weight: Tensor) -> dict[str, Tensor]:
    """Codes of a row times its largest magnitude / 127."""
    absmax = weight.float().abs().amax(1)
    codes = (weight.float() * (127 / absmax)[:, None]).round().to(torch.int8)
    return {"weight": codes, "SCB": absmax, "weight_format": torch.tensor(0, dtype=torch.uint8)}


def compressed_tensors(weight: Tensor) -> dict[str, Tensor]:
    """A scale of absmax / 127.5 in the source's dtype; codes of -128..127."""
    scale = (weight.float().abs().amax(1, keepdim=True) / 127.5).to(weight.dtype)
    codes = (weight.float() / scale.float()).round().clamp(-128, 127).to(torch.int8)
    return {"weight": codes, "weight_scale": scale}


def write_packed(
    folder: Path,
    pack: Callable[[Tensor], dict[str, Tensor]],
    config: dict[str, Any] = LLAMA,
    *,
    skip: tuple[str, ...] = ("lm_head",),
    others: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """A checkpoint whose linears are packed, but for some; returns its tensors."""
    plain = random_tensors(LLAMA)
    tensors: dict[str, Tensor] = {}
    for name, tensor in plain.items():
        path = name.removesuffix(".weight")
        if path.endswith(("_proj", "lm_head")) and not path.endswith(skip):
            tensors |= {f"{path}.{kind}": value for kind, value in pack(tensor).items()}
        else:
            tensors[name] = tensor
    tensors |= others or {}
    section = BITSANDBYTES if pack is bitsandbytes_tensors else COMPRESSED
    write_checkpoint(folder, {"quantization_config": section} | config, tensors, shards=2)
    return tensors
