"""The cache of multi-head latent attention: a latent and a rotated key per position, which all heads share."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..models.config import DecoderConfig
from .cache import HostCache, Quantized, Stored
from .quantized_cache import quantize_heads


class LatentParts(ABC):
    """``[layers, 1, batch, 1, capacity, width]`` for latents, and likewise for rotated keys; in int8 with a float16 scale for each."""

    _parts: list[Tensor]

    @abstractmethod
    def _put(self, part: Tensor, new: Tensor) -> Tensor:
        """Append ``new`` ``[batch, 1, tokens, width]``; returns a view of what attention has to read."""

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


def latent_parts(
    config: DecoderConfig, *, batch: int, capacity: int, dtype: torch.dtype, device: torch.device | None = None
) -> list[Tensor]:  # fmt: skip
    """The memory of all layers."""
    assert config.latent is not None
    shape = (config.kv_layers, 1, batch, 1, capacity)
    widths = config.latent.widths
    parts = [torch.zeros(*shape, width, dtype=dtype, device=device) for width in widths]
    if dtype == torch.int8:
        parts += [torch.zeros(*shape, 1, dtype=torch.float16, device=device) for _ in widths]
    return parts


class LatentCache(LatentParts, HostCache):
    """Such a cache, filled by the host."""

    def __init__(
        self, config: DecoderConfig, *, batch: int, capacity: int, dtype: torch.dtype, device: torch.device | None = None
    ) -> None:  # fmt: skip
        super().__init__(
            latent_parts(config, batch=batch, capacity=capacity, dtype=dtype, device=device)
        )

    def _put(self, part: Tensor, new: Tensor) -> Tensor:
        return HostCache._put(self, part, new)
