"""Run windows of tokens through a model with one block in memory at a time; shared by calibration and evaluation.

Hidden states of all windows are kept between blocks (``tokens * hidden`` values); weights are not, except in GPU memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..backends.interface import Positions
from ..decoder.block import Observer, build_layer
from ..decoder.cache import Cache
from ..decoder.decoder import Embedding, Output
from ..models.architecture import Architecture
from ..models.config import DecoderConfig
from .weights import Weights


class BlockStream:
    """Runs a model's blocks over windows.

    Each window is processed alone, so that its results do not depend on the others.

    Args:
        architecture: the model.
        weights: where its weights come from.
        windows: token ids int64 ``[tokens]`` of each window.
        device: where blocks run, if not on the device of the weights' backend.
        kv_cache: dtype of a cache that keys and values pass through, as in decoding; None: no cache.
    """

    def __init__(
        self,
        architecture: Architecture,
        weights: Weights,
        windows: Sequence[Tensor],
        device: torch.device | str | None = None,
        kv_cache: torch.dtype | None = None,
    ) -> None:
        self.architecture = architecture
        self._weights, self._kv_cache = weights, kv_cache
        embedded_on = weights.backend.device
        self._device = embedded_on if device is None else torch.device(device)
        embedding = Embedding(architecture, weights, weights.dtype)
        self.hidden: list[Tensor] = []
        """The next block's input, or the last block's output: ``[1, tokens, hidden]`` per window (``[streams, 1, tokens, hidden]`` if
        there are several), in the weights' dtype."""
        self._own: list[list[Tensor | None]] = []
        self._positions: dict[int, Positions] = {}
        for window in windows:
            x, positions, own = embedding(window[None].to(embedded_on))
            self.hidden.append(x.to(self._device))
            self._own.append([None if each is None else each.to(self._device) for each in own])
            if len(window) not in self._positions:
                self._positions[len(window)] = positions.to(self._device)
        sources = enumerate(architecture.config.key_sources)
        self._read = {source for layer, source in sources if source != layer}
        self._kept: dict[tuple[int, int], Cache] = {}
        """Caches of one layer: of each window for a layer whose keys later layers read, else one for all windows in turn."""

    def advance(self, layer: int, observe: Observer | None = None) -> None:
        """Load a block, run every window through it, and discard it."""
        block = build_layer(self.architecture, layer, self._weights, observe, cache_layer=0)
        for number, x in enumerate(self.hidden):
            cache, own = self._cache(layer, number), self._own[number][layer]
            self.hidden[number] = block(x, self._positions[x.shape[-2]], cache, own)
        self._kept = {key: cache for key, cache in self._kept.items() if key[0] in self._read}

    def _cache(self, layer: int, window: int) -> Cache | None:
        """The cache of a layer for a window; None if keys and values pass through none."""
        config = self.architecture.config
        source = config.key_source(layer)
        is_read = source in self._read
        if self._kv_cache is None and not is_read:
            return None
        key = (source, window if is_read else 0)
        if key not in self._kept:
            dtype, longest = self._kv_cache or self._weights.dtype, max(self._positions)
            backend = self._weights.backend
            self._kept[key] = backend.cache(_one_layer(config, layer), batch=1, capacity=longest, dtype=dtype)  # fmt: skip
        return self._kept[key]

    def output(self) -> Output:
        """Final norm and head, for hidden states after the last block."""
        return Output(self.architecture, self._weights)


def _one_layer(config: DecoderConfig, layer: int) -> DecoderConfig:
    """A config whose cache has this layer's keys and values alone."""
    heads = (config.heads_of(layer),) if config.heads else ()
    return replace(
        config, num_layers=1, recurrence=None, recurrent_layers=(), attention_layers=(), heads=heads, key_sources=()
    )  # fmt: skip
