"""Run windows of tokens through a model with one block in memory at a time; shared by calibration and evaluation.

Hidden states of all windows are kept between blocks (``tokens * hidden`` values); weights are not, except in GPU memory.
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
        self._weights = weights
        embedded_on = weights.backend.device
        self._device = embedded_on if device is None else torch.device(device)
        embedding = Embedding(architecture, weights, weights.dtype)
        self.hidden: list[Tensor] = []
        """The next block's input, or the last block's output: ``[1, tokens, hidden]`` per window, in the weights' dtype."""
        self._positions: dict[int, Positions] = {}
        for window in windows:
            x, positions = embedding(window[None].to(embedded_on))
            self.hidden.append(x.to(self._device))
            if len(window) not in self._positions:
                self._positions[len(window)] = positions.to(self._device)
        self._cache: Cache | None = None
        """One layer's cache, used for all windows in turn."""
        if kv_cache is not None:
            one_layer = replace(
                architecture.config, num_layers=1, recurrence=None, recurrent_layers=(), attention_layers=()
            )  # fmt: skip
            longest = max(self._positions)
            self._cache = weights.backend.cache(one_layer, batch=1, capacity=longest, dtype=kv_cache)  # fmt: skip

    def advance(self, layer: int, observe: Observer | None = None) -> None:
        """Load a block, run every window through it, and discard it."""
        block = Block(self.architecture, layer, self._weights, observe, cache_layer=0)
        for number, x in enumerate(self.hidden):
            self.hidden[number] = block(x, self._positions[x.shape[1]], self._cache)

    def output(self) -> Output:
        """Final norm and head, for hidden states after the last block."""
        return Output(self.architecture, self._weights)
