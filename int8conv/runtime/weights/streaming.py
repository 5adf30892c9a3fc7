"""Run windows of tokens through a model with one block of it in memory at a time: what calibration and evaluation share.

Hidden states of all windows are kept between blocks, ``tokens * hidden`` values; weights never are, but in the memory of a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..backends.interface import Positions
from ..decoder.cache import Cache
from ..decoder.decoder import Block, Embedding, Observer, Output
from ..models.architecture import Architecture
from .weights import Weights


class BlockStream:
    """A model's blocks over some windows.

    Each window goes through alone, so that what is computed of it does not depend on the others.

    Args:
        architecture: the model.
        weights: where its weights come from.
        windows: token ids int64 ``[tokens]`` of each window.
        device: where blocks run, if not where the weights' backend is.
        kv_cache: dtype of a cache that keys and values pass through, as when tokens come one by one; None: they stay as they are.
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
        self._weights = weights
        embedded_on = weights.backend.device
        self._device = embedded_on if device is None else torch.device(device)
        embedding = Embedding(architecture, weights, weights.dtype)
        self.hidden: list[Tensor] = []
        """The next block's input, or after the last block its output: ``[1, tokens, hidden]`` of each window, in the weights' dtype."""
        self._positions: dict[int, Positions] = {}
        for window in windows:
            x, positions = embedding(window[None].to(embedded_on))
            self.hidden.append(x.to(self._device))
            if len(window) not in self._positions:
                self._positions[len(window)] = positions.to(self._device)
        self._cache: Cache | None = None
        """Of one layer for all of them: a window's keys and values pass through it, and the next's take their place."""
        if kv_cache is not None:
            one_layer = replace(architecture.config, num_layers=1)
            longest = max(self._positions)
            self._cache = weights.backend.cache(one_layer, batch=1, capacity=longest, dtype=kv_cache)  # fmt: skip

    def advance(self, layer: int, observe: Observer | None = None) -> None:
        """Load a block, run every window through it, and forget it."""
        block = Block(self.architecture, layer, self._weights, observe, cache_layer=0)
        for number, x in enumerate(self.hidden):
            self.hidden[number] = block(x, self._positions[x.shape[1]], self._cache)

    def output(self) -> Output:
        """Final norm and head, for hidden states after the last block."""
        return Output(self.architecture, self._weights)
