"""The cache of multi-head latent attention: a latent and a rotated key per position, which all heads share."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.config import DecoderConfig
from .cache import HostCache, Quantized, Stored
from .quantized_cache import quantize_heads


class LatentCache(HostCache):
    """``[layers, 1, batch, 1, capacity, width]`` for latents, and likewise for rotated keys; in int8 with a float16 scale for each."""

    def __init__(
        self, config: DecoderConfig, *, batch: int, capacity: int, dtype: torch.dtype
    ) -> None:
        assert config.latent is not None
        shape = (config.kv_layers, 1, batch, 1, capacity)
        parts = [torch.zeros(*shape, width, dtype=dtype) for width in config.latent.widths]
        if dtype == torch.int8:
            parts += [torch.zeros(*shape, 1, dtype=torch.float16) for _ in config.latent.widths]
        super().__init__(parts)

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Stored, Stored]:
        """``keys``: latents ``[batch, 1, tokens, rank]``; ``values``: rotated keys likewise."""
        latents, rotated = (self._stored(layer, kind, x) for kind, x in enumerate((keys, values)))
        return latents, rotated

    def _stored(self, layer: int, kind: int, new: Tensor) -> Stored:
        part = self._parts[kind][layer, 0]
        if part.dtype != torch.int8:
            return self._put(part, new)
        codes, scale = quantize_heads(new)
        return Quantized(self._put(part, codes), self._put(self._parts[kind + 2][layer, 0], scale))
