"""A source checkpoint of random weights made on the device, and its conversion, on a local disk."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import torch

import int8conv
from int8conv.formats.int8.layout import TensorSpec
from int8conv.formats.safetensors.header import TensorInfo, build_header
from int8conv.runtime.models.architecture import read_architecture

from .random_model import CONFIGS

_ROWS_BYTES = 64 << 20


def folders(parent: Path, model: str, layers: int, device: torch.device) -> tuple[Path, Path]:
    """Source in float16 and converted folder, made at the first call."""
    source, converted = parent / "source", parent / "int8"
    if not converted.exists():
        _write(source, CONFIGS[model] | {"num_hidden_layers": layers}, device)
        int8conv.convert_checkpoint(source, converted, outliers="none")
    return source, converted


def _write(folder: Path, config: dict[str, object], device: torch.device) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    modules = read_architecture(config, ()).modules
    tensors = [TensorSpec(f"{m.path}.weight", "F16", m.shape) for m in modules]
    infos, position = [], 0
    for t in tensors:
        infos.append(TensorInfo(t.name, t.dtype, t.shape, position, position + t.nbytes))
        position += t.nbytes
    with (folder / "model.safetensors").open("wb") as file:
        file.write(build_header(infos, {"format": "pt"}, alignment=8))
        for t in tensors:
            count = prod(t.shape)
            for first in range(0, count, _ROWS_BYTES // 2):
                part = torch.randn(min(_ROWS_BYTES // 2, count - first), device=device) * 0.02
                file.write((part + (len(t.shape) == 1)).half().cpu().numpy().data)
    (folder / "config.json").write_text(json.dumps(config))
