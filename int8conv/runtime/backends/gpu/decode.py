"""Decoding step by step, captured in a CUDA graph."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ....kernels.gpu.workspace import Workspace, use
from ....kernels.weight import FallbackCounter
from ..interface import Forward
from .cache import StaticCache


class DecodeSteps:
    """Repeated steps of one token per sequence of a cache.

    The first call runs the kernels, which compiles them, and captures the step; every call replays it. Everything that changes
    between steps (tokens, lengths, cache, states) is in device memory that the graph reads; if the cache moves, the step is captured again.
    Without a GPU, or if a mixture of experts has to read which experts a step needs, the step is simply run.
    """

    def __init__(
        self, decoder: Forward, cache: StaticCache, counters: Mapping[str, FallbackCounter]
    ) -> None:
        """``counters``: counts of the outlier fallbacks, which the warm-up step before a capture must not change."""
        self.decoder = decoder
        self.cache = cache
        self.counters = counters
        device = cache.lengths.device
        self.tokens = torch.zeros(len(cache.lengths), 1, dtype=torch.int64, device=device)
        self._captured = device.type == "cuda" and not decoder.needs_host_sync
        self._logits: Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._workspace = Workspace()
        """Of the captured kernels: replays on any stream share it with nothing else."""
        self._capacity = 0
        """Capacity of the cache when the step was captured."""

    def __call__(self, tokens: Tensor) -> Tensor:
        """Token ids ``[b, 1]`` -> logits ``[b, 1, vocab]``, overwritten by the next call."""
        self.tokens.copy_(tokens)
        if not self._captured:
            return self._run()
        if self._graph is None or self._capacity != self.cache.capacity:
            self._capture()
        assert self._graph is not None
        self._graph.replay()
        self.cache.length += 1
        assert self._logits is not None
        return self._logits

    def _run(self) -> Tensor:
        return self.decoder.forward(self.tokens, self.cache, last_only=True)

    def _capture(self) -> None:
        self._graph = self._logits = None
        lengths, length = self.cache.lengths.clone(), self.cache.length
        kept = [c.counts for c in self.counters.values()]
        kept += [part for state in self.cache.states for part in state.parts]
        saved = [(each, each.clone()) for each in kept]
        device = self.tokens.device
        side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        here = torch.cuda.current_stream(device)
        side.wait_stream(here)
        with torch.cuda.stream(side), use(self._workspace):
            self._run()
        here.wait_stream(side)
        self.cache.lengths.copy_(lengths)  # the positions it wrote will be overwritten
        for now, before in saved:
            now.copy_(before)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side), use(self._workspace):
            self._logits = self._run()
        self.cache.length = length
        self._graph, self._capacity = graph, self.cache.capacity
