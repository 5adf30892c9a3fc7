"""Run windows of tokens through a model with one block of it in memory at a time: what calibration and evaluation share.

Hidden states of all windows are kept between blocks, ``tokens * hidden`` float32 values; weights never are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .architecture import Architecture
from .decoder import Block, Embedding, Observer, Output
from .torch_kernels import Places
from .weights import Weights


class BlockStream:
    """A model's blocks over some windows.

    Each window goes through alone, so that what is computed of it does not depend on the others.

    Args:
        architecture: the model.
        weights: where its weights come from.
        windows: token ids int64 ``[tokens]`` of each window.
        device: where blocks run.
        kv_cache: dtype of a cache that keys and values pass through, as when tokens come one by one; None: they stay as they are.
    """

    def __init__(
        self,
        architecture: Architecture,
        weights: Weights,
        windows: Sequence[Tensor],
        device: str = "cpu",
        kv_cache: torch.dtype | None = None,
    ) -> None:
        self.architecture = architecture
        self._weights = weights
        self._device = torch.device(device)
        embedding = Embedding(architecture, weights, torch.float32)
        self.hidden: list[Tensor] = []
        """The next block's input, or after the last block its output: float32 ``[1, tokens, hidden]`` of each window."""
        self._places: dict[int, Places] = {}
        for window in windows:
            x, places = embedding(window[None])
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
