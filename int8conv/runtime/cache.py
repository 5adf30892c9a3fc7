"""The static key/value cache: allocated once for the longest sequence, filled in place."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import DecoderConfig


class KVCache:
    """Keys and values of every layer, ``[batch, kv_heads, capacity, head_dim]`` each; sequences may differ in length.

    ``gpu_cache.DeviceCache`` is the same on a GPU. Prompts of different length pass one by one, each through its
    ``sequence``; then all go on together, a token at a time.
    """

    def __init__(
        self, config: DecoderConfig, *, batch: int, capacity: int, dtype: torch.dtype
    ) -> None:
        shape = (config.num_layers, 2, batch, config.num_kv_heads, capacity, config.head_dim)
        self._data = torch.zeros(shape, dtype=dtype)
        self.lengths = torch.zeros(batch, dtype=torch.int64)
        """int64 ``[batch]``: positions filled so far, the same in every layer between two forward passes."""
        self.capacity = capacity

    @property
    def length(self) -> int:
        """Positions filled in the longest sequence."""
        return int(self.lengths.max())

    def sequence(self, i: int) -> KVCache:
        """One sequence's part of the same memory: for its prompt, while others have a length of their own."""
        part = object.__new__(KVCache)
        part._data = self._data[:, :, i : i + 1]
        part.lengths = self.lengths[i : i + 1]
        part.capacity = self.capacity
        return part

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, all positions."""
        keys, values = self._data[layer]
        return keys, values

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put ``[batch, kv_heads, tokens, head_dim]`` behind what is there.

        Returns:
            All positions up to the end of the longest sequence, as views; those behind the end of a shorter one hold
            anything.
        """
        lengths, tokens = self.lengths.tolist(), keys.shape[2]
        start, end = min(lengths), max(lengths) + tokens
        stored_keys, stored_values = self._data[layer]
        if start + tokens == end:
            stored_keys[:, :, start:end] = keys
            stored_values[:, :, start:end] = values
        else:
            for i, start in enumerate(lengths):
                stored_keys[i, :, start : start + tokens] = keys[i]
                stored_values[i, :, start : start + tokens] = values[i]
        return stored_keys[:, :, :end], stored_values[:, :, :end]

    def advance(self, tokens: int) -> None:
        """Count positions as filled, once all layers have them."""
        self.lengths += tokens

    def truncate(self, length: int) -> None:
        """Forget what stands from position ``length`` on, in every sequence."""
        self.lengths.clamp_(max=length)

    def clear(self, i: int) -> None:
        """Forget a sequence: one that is done steps on with the others, in its own memory again from the start."""
        self.lengths[i] = 0

    def enlarge(self, capacity: int) -> None:
        """Move to larger memory; what is there stays."""
        data = self._data.new_zeros(*self._data.shape[:-2], capacity, self._data.shape[-1])
        data[..., : self.length, :] = self._data[..., : self.length, :]
        self._data, self.capacity = data, capacity
