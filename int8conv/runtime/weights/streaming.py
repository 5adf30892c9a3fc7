"""Run windows of tokens through a model with one block of it in memory at a time: what calibration and evaluation share.

Hidden states of all windows are kept between blocks, ``tokens * hidden`` values; weights never are, but in the memory of a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..backends.torch_backend import Places
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
        device: where blocks run, if not where the weights' kernels are.
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
        embedded_on = weights.kernels.device
        self._device = embedded_on if device is None else torch.device(device)
        embedding = Embedding(architecture, weights, weights.dtype)
        self.hidden: list[Tensor] = []
        """The next block's input, or after the last block its output: ``[1, tokens, hidden]`` of each window, in the weights' dtype."""
        self._places: dict[int, Places] = {}
        for window in windows:
            x, places = embedding(window[None].to(embedded_on))
            self.hidden.append(x.to(self._device))
            if len(window) not in self._places:
                self._places[len(window)] = places.to(self._device)
        self._cache: Any = None
        if kv_cache is not None:
            self._cache = _OneLayer(
                weights.kernels.cache(
                    replace(architecture.config, num_layers=1), batch=1,
                    capacity=max(self._places), dtype=kv_cache,
                )
            )  # fmt: skip

    def advance(self, layer: int, observe: Observer | None = None) -> None:
        """Load a block, run every window through it, and forget it."""
        block = Block(self.architecture, layer, self._weights, observe)
        for number, x in enumerate(self.hidden):
            self.hidden[number] = block(x, self._places[x.shape[1]], self._cache)

    def output(self) -> Output:
        """Final norm and head, for hidden states behind the last block."""
        return Output(self.architecture, self._weights)


class _OneLayer:
    """A cache of one layer for all of them: a window's keys and values pass through it, and the next's take their place."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def update(self, layer: int, keys: Tensor, values: Tensor) -> Any:
        return self._cache.update(0, keys, values)

    def layer(self, layer: int) -> Any:
        return self._cache.layer(0)
