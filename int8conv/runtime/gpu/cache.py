"""The static key/value cache of a GPU: allocated once, lengths on the device, so that a CUDA graph can step it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import DecoderConfig


class DeviceCache:
    """Keys and values of every layer, ``[batch, kv_heads, capacity, head_dim]`` each; sequences may differ in length.

    The host keeps the longest length too (``length``): prompts of several tokens are not captured and need it.
    """

    def __init__(
        self, config: DecoderConfig, *, batch: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:  # fmt: skip
        shape = (config.num_layers, 2, batch, config.num_kv_heads, capacity, config.head_dim)
        self._data = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = torch.zeros(batch, dtype=torch.int32, device=device)
        """int32 ``[batch]``: positions filled."""
        self.capacity = capacity
        self.length = 0

    @property
    def nbytes(self) -> int:
        return self._data.nbytes

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, all positions."""
        keys, values = self._data[layer]
        return keys, values

    def sequence(self, i: int) -> DeviceCache:
        """One sequence's part of the same memory: for its prompt, while others have a length of their own."""
        part = object.__new__(DeviceCache)
        part._data = self._data[:, :, i : i + 1]
        part.lengths = self.lengths[i : i + 1]
        part.capacity = self.capacity
        part.length = int(part.lengths)
        return part

    def advance(self, tokens: int) -> None:
        """Count positions as filled, once all layers have them."""
        self.lengths += tokens
        self.length += tokens

    def truncate(self, length: int) -> None:
        """Forget what stands from position ``length`` on, in every sequence."""
        self.lengths.clamp_(max=length)
        self.length = min(self.length, length)

    def clear(self, i: int) -> None:
        """Forget a sequence: one that is done steps on with the others, in its own memory again from the start."""
        self.lengths[i] = 0

    def enlarge(self, capacity: int) -> None:
        """Move to larger memory; what is there stays."""
        data = self._data.new_zeros(*self._data.shape[:-2], capacity, self._data.shape[-1])
        data[..., : self.length, :] = self._data[..., : self.length, :]
        self._data, self.capacity = data, capacity
