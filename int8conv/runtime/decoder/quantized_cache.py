"""The key/value cache in int8, with half the memory of a 16-bit one.

    code = clamp(rint(x / scale), -127, 127),   scale = fp16(absmax / 127)

with one scale per head and token for keys and one for values: each token is quantized once, when it is stored, independently of
all others. Keys are quantized after the rotation. A head takes 66 bytes per token with head size 64, 130 with 128. Scales are
float16, as float32 ones do not improve any figure (docs/fidelity.md); they are limited to its normal numbers, so that magnitudes
below 3e-5 become 0 and magnitudes above 8.3e6 would be clipped. Codes are computed with the rounded scale.

Attention widens a block of heads at a time (``backends.torch_attention``); the whole cache never exists in floats. On a GPU,
``backends.gpu.cache`` holds the same codes and scales, and attention of single tokens reads them directly.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from ..models.config import DecoderConfig
from .cache import HostCache, Places, Quantized
from .recurrent.states import empty_states

LARGEST_CODE: Final = 127
_SCALES: Final = torch.float16
_SMALLEST, _LARGEST = 2.0**-14, torch.finfo(_SCALES).max


class QuantizedCache(HostCache):
    """Keys and values of every layer in int8."""

    def __init__(self, config: DecoderConfig, *, batch: int, capacity: int) -> None:
        self._places = Places(config)
        parts = quantized_parts(config, batch=batch, capacity=capacity)
        super().__init__(parts, states=empty_states(config, batch))

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Quantized, Quantized]:
        k, v = (self._quantized(layer, kind, new) for kind, new in enumerate((keys, values)))
        return k, v

    def _quantized(self, layer: int, kind: int, new: Tensor) -> Quantized:
        codes, scale = quantize_heads(new)
        memory = self._memory(layer, kind)
        return Quantized(self._put(memory.codes, codes), self._put(memory.scale, scale))

    def read(self, layer: int, end: int) -> tuple[Quantized, Quantized]:
        """Keys and values of a layer up to position ``end``."""
        return self._memory(layer, 0).between(0, end), self._memory(layer, 1).between(0, end)

    def _memory(self, layer: int, kind: int) -> Quantized:
        """A layer's keys or values, for all positions."""
        part, row = self._places.of(layer)
        codes, scale = self._parts[2 * part : 2 * part + 2]
        return Quantized(codes[row, kind], scale[row, kind])


def quantized_parts(
    config: DecoderConfig, *, batch: int, capacity: int, device: torch.device | None = None
) -> list[Tensor]:
    """Memory for codes and scales of every layer, for a ``Cache``: two parts for each form of layers."""
    parts = []
    for heads, layers in Places(config).counts.items():
        shape = (layers, 2, batch, heads.count, capacity)
        parts.append(torch.zeros(*shape, heads.size, dtype=torch.int8, device=device))
        parts.append(torch.zeros(*shape, 1, dtype=_SCALES, device=device))
    return parts


def quantize_heads(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize ``[..., head_dim]``: codes as floats with integer values ``[..., head_dim]``, and float16 scales ``[..., 1]``."""
    largest = torch.maximum(x.amax(dim=-1, keepdim=True), -x.amin(dim=-1, keepdim=True)).float()
    scale = (largest / LARGEST_CODE).clamp_(_SMALLEST, _LARGEST).to(_SCALES)
    codes = (x.float() / scale.float()).round_().clamp_(-LARGEST_CODE, LARGEST_CODE)
    return codes, scale
