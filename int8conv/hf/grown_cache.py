"""Room behind the keys and values of transformers' dynamic cache, so that a token is appended in place instead of copying all.

The cache never shows it: ``keys`` and ``values`` of its layers are views of the filled positions. Memory that anybody has seen is not
written to again: after a crop, a reordering or a copy of the cache, the next token finds new room.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

_LEAST: Final = 64
"""Positions of room, at least."""
_ATTRIBUTE: Final = "_int8conv_room"


class GrownCache:
    """Keys and values of one layer: float32 ``[batch, kv_heads, capacity, head_dim]``, of which ``filled`` positions are used."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        """A copy of ``[batch, kv_heads, filled, head_dim]``, with room."""
        self.filled: int = keys.shape[2]
        self.capacity = self.filled + max(_LEAST, self.filled // 4)
        self.keys, self.values = (self._with_room(part, self.capacity) for part in (keys, values))
        self.lengths = torch.full((len(keys),), self.filled)
        """int64 ``[batch]``."""
        self.memory = self.keys, self.values, self.lengths
        self._seen: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def _with_room(part: Tensor, capacity: int) -> Tensor:
        grown = part.new_empty(*part.shape[:2], capacity, part.shape[3])
        grown[:, :, : part.shape[2]] = part
        return grown

    # a cache layer of transformers
    @classmethod
    def of(cls, layer: Any) -> GrownCache:
        """The room that a cache layer has had since the last token; a new one if the cache has changed in any other way."""
        found: GrownCache | None = getattr(layer, _ATTRIBUTE, None)
        if found is not None and found._is_seen_in(layer):
            return found
        return cls(layer.keys, layer.values)

    def _is_seen_in(self, layer: Any) -> bool:
        """Whether the layer shows what was filled last, which is false for the other of two copies, and one more position fits."""
        if self._seen is None or self._seen[0] is not layer.keys or self._seen[1] is not layer.values:  # fmt: skip
            return False
        return self.filled < self.capacity

    # likewise
    def append_to(self, layer: Any) -> None:
        """Count the position that has been written behind the filled ones, and show it in the cache layer."""
        self.replace_last_of(layer)
        if type(layer) is DynamicSlidingWindowLayer:
            layer.cumulative_length += 1

    # likewise
    def replace_last_of(self, layer: Any) -> None:
        """The same for a cache layer that has counted the position already, with another key and value."""
        self.filled += 1
        self.lengths.fill_(self.filled)
        keys, values = self.keys.narrow(2, 0, self.filled), self.values.narrow(2, 0, self.filled)
        layer.keys, layer.values = self._seen = keys, values
        setattr(layer, _ATTRIBUTE, self)


# caches and their layers have no types here
def cache_layer(cache: Any, number: int) -> Any:
    """A layer of a dynamic cache in float32 on the host that has keys and room in its window for one more token; None: not of this kind."""
    if type(cache) is not DynamicCache or getattr(cache, "offloading", False):
        return None
    if number >= len(cache.layers):
        return None
    layer = cache.layers[number]
    if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) or not layer.is_initialized:
        return None
    keys = layer.keys
    if keys is None or keys.ndim != 4 or keys.dtype != torch.float32 or keys.device.type != "cpu":
        return None
    if type(layer) is DynamicSlidingWindowLayer:
        inside = layer.cumulative_length == keys.shape[2] < layer.sliding_window - 1
        if not inside or getattr(layer, "record_past", False):
            return None
    return layer
