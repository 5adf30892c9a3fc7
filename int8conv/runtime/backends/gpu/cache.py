"""The static key/value cache of a GPU: allocated once, with lengths on the device, for use in a CUDA graph."""

from __future__ import annotations

import torch

from ...decoder.cache import Cache, Quantized, Stored
from ...decoder.quantized_cache import quantized_parts
from ...models.config import DecoderConfig


class DeviceCache(Cache):
    """Keys and values of every layer, each ``[batch, kv_heads, capacity, head_dim]``, in 16 bits or int8 with scales.

    The host also tracks the longest length (``length``): prompts are not captured and need it.
    """

    length = 0

    def __init__(
        self, config: DecoderConfig, *, batch: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:  # fmt: skip
        if dtype == torch.int8:
            parts = quantized_parts(config, batch=batch, capacity=capacity, device=device)
        else:
            shape = (config.kv_layers, 2, batch, config.num_kv_heads, capacity, config.head_dim)
            parts = [torch.zeros(shape, dtype=dtype, device=device)]
        super().__init__(parts, torch.int32)

    def layer(self, layer: int) -> tuple[Stored, Stored]:
        """Keys and values of a layer, for all positions."""
        keys, values = (self._stored(layer, kind) for kind in (0, 1))
        return keys, values

    def _stored(self, layer: int, kind: int) -> Stored:
        first, *scales = (part[layer, kind] for part in self._parts)
        return Quantized(first, *scales) if scales else first

    def enlarge(self, capacity: int) -> None:
        super().enlarge(rounded(capacity))

    def recount(self) -> None:
        self.length = int(self.lengths.max())

    def advance(self, tokens: int) -> None:
        super().advance(tokens)
        self.length += tokens

    def truncate(self, length: int) -> None:
        super().truncate(length)
        self.length = min(self.length, length)


def rounded(capacity: int) -> int:
    """To a multiple of 16 positions: no tensor's address or stride is then less aligned in one cache than in another, for which Triton would
    compile kernels anew."""
    return -(-capacity // 16) * 16
