"""The static key/value cache: allocated once for the longest sequence, filled in place."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import DecoderConfig


class KVCache:
    """Keys and values of every layer, ``[batch, kv_heads, capacity, head_dim]`` each."""

    def __init__(
        self, config: DecoderConfig, *, batch: int, capacity: int, dtype: torch.dtype
    ) -> None:
        shape = (config.num_layers, 2, batch, config.num_kv_heads, capacity, config.head_dim)
        self._data = torch.zeros(shape, dtype=dtype)
        self.capacity = capacity
        self.length = 0
        """Positions filled so far, the same in every layer between two forward passes."""

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put ``[batch, kv_heads, tokens, head_dim]`` behind what is there; return all up to there, as views."""
        end = self.length + keys.shape[2]
        stored_keys, stored_values = self._data[layer]
        stored_keys[:, :, self.length : end] = keys
        stored_values[:, :, self.length : end] = values
        return stored_keys[:, :, :end], stored_values[:, :, :end]

    def advance(self, tokens: int) -> None:
        """Count positions as filled, once all layers have them."""
        self.length += tokens
