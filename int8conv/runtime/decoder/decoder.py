"""The decoder: one implementation for all families, parametrised by ``DecoderConfig``.

Shapes: ``b`` batch, ``t`` tokens of a call, ``s`` positions in the cache, ``h`` heads, ``d`` head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..backends.interface import Positions
from ..backends.parts import Hidden, Projection, tensor_of
from ..models.architecture import Architecture, Module
from ..models.config import DecoderConfig
from ..weights.weights import Weights
from .block import Block, build_layer
from .cache import Cache
from .norm import Norm
from .residual.altup import Streams
from .residual.layer_input import LayerEmbedding
from .rotary import Rotary


class Embedded(NamedTuple):
    """What the first layer gets."""

    hidden: Tensor
    """``[b, t, hidden]``, or ``[streams, b, t, hidden]``."""
    positions: Positions
    own: Sequence[Tensor | None]
    """Each layer's own embeddings ``[b, t, size]``, if layers have such."""


class Embedding:
    """Token and learned position embeddings, and the positions for the blocks."""

    def __init__(self, architecture: Architecture, weights: Weights, dtype: torch.dtype) -> None:
        config, modules = architecture.config, architecture.outside()
        self.dtype = dtype
        self.backend = weights.backend
        self.tokens = weights.lookup(modules["embed"])
        learned = modules.get("positions")
        self.positions = None if learned is None else weights.lookup(learned)
        self.offset = config.position_offset
        self.project = _optional(weights, modules.get("project_in"))
        self.norm = (
            Norm(config, modules["embedding_norm"], weights) if config.embedding_norm else None
        )
        self.scale = float(torch.tensor(config.embedding_scale, dtype=dtype))
        self.rotaries = [
            Rotary(rope, config.rotated_size(local=local))
            for rope, local in ((config.rope, False), (config.local_rope, True)) if rope is not None
        ]  # fmt: skip
        self.own = LayerEmbedding(config, modules, weights) if config.layer_input else None
        self.streams = Streams(modules, weights, "altup_in") if config.altup else None
        self.layers = config.num_layers

    def __call__(self, token_ids: Tensor, cache: Cache | None = None) -> Embedded:
        """For ids ``[b, t]``; the positions of these tokens are those after the cache's."""
        positions = self.backend.positions(self.rotaries, cache, token_ids, self.dtype)
        x = self.tokens(token_ids)
        if self.scale != 1:
            x = x * self.scale
        if self.project is not None:
            (x,) = self.project(x)
        if self.positions is not None:
            x = x + self.positions(positions.ids + self.offset)
        if self.norm is not None:
            x = tensor_of(self.norm(x))
        own = [None] * self.layers if self.own is None else self.own(token_ids, x)
        return Embedded(x if self.streams is None else self.streams.spread(x), positions, own)


def _optional(weights: Weights, module: Module | None) -> Projection | None:
    return weights.projection([module]) if module is not None else None


class Output:
    """Final norm and head: hidden states to logits."""

    def __init__(self, architecture: Architecture, weights: Weights) -> None:
        config, modules = architecture.config, architecture.outside()
        self.final_norm = Norm.of(config, modules, "final_norm", weights)
        self.streams = Streams(modules, weights, "altup_out") if config.altup else None
        self.project = _optional(weights, modules.get("project_out"))
        self._architecture = architecture
        self.head = _optional(weights, architecture.head() if architecture.has_head else None)
        self.scale, self.softcap = config.logit_scale, config.logit_softcap

    def __call__(self, x: Tensor) -> Tensor:
        """``[b, t, hidden]``, or ``[streams, b, t, hidden]``, -> float32 ``[b, t, vocab]``."""
        h = self.normed(x)
        h = h if self.project is None else self.project(h)[0]
        if self.head is None:
            self._architecture.head()  # raises
        assert self.head is not None
        logits = self.head(h)[0].float()
        if self.scale != 1:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    def normed(self, x: Tensor) -> Hidden:
        """Through the final norm alone: ``[b, t, hidden]``."""
        x = x if self.streams is None else self.streams.joined(x)
        return x if self.final_norm is None else self.final_norm(x)


class Decoder:
    """Embedding, blocks, final norm and head."""

    def __init__(
        self, architecture: Architecture, weights: Weights, dtype: torch.dtype, kv_cache: torch.dtype | None = None
    ) -> None:  # fmt: skip
        """``dtype``: dtype of activations; ``kv_cache``: dtype of the cache, None: the same."""
        self.config = config = architecture.config
        self.dtype = dtype
        self.kv_cache = kv_cache or dtype
        self.backend = weights.backend
        self.embedding = Embedding(architecture, weights, dtype)
        self.blocks = [build_layer(architecture, i, weights) for i in range(config.num_layers)]
        self.output = Output(architecture, weights)
        self.tail = _tail(config)

    def cache(self, *, batch: int, capacity: int) -> Cache:
        """An empty cache for ``batch`` sequences of ``capacity`` positions each."""
        return self.backend.cache(self.config, batch=batch, capacity=capacity, dtype=self.kv_cache)

    @property
    def needs_host_sync(self) -> bool:
        """Whether a step of one token per sequence requires the host to wait for the device."""
        return any(block.needs_host_sync for block in self.blocks if isinstance(block, Block))

    @property
    def is_compiled(self) -> bool:
        """Whether a layer is one compiled call for single tokens."""
        return any(isinstance(block, Block) and block.fused is not None for block in self.blocks)

    @torch.inference_mode()
    def forward(
        self, token_ids: Tensor, cache: Cache | None = None, *, last_only: bool = False
    ) -> Tensor:
        """Logits for token ids ``[b, t]``: float32 ``[b, t, vocab]``, or ``[b, 1, vocab]`` with ``last_only``.

        With a cache, the tokens follow those in it and are appended to it.
        """
        x = self._through(token_ids, cache, last_only)
        if cache is not None:
            cache.advance(token_ids.shape[1])
        return self.output(x[..., -1:, :] if last_only else x)

    @torch.inference_mode()
    def hidden(self, token_ids: Tensor) -> Tensor:
        """Hidden states behind the final norm, float32 ``[b, t, hidden]``, for token ids ``[b, t]``."""
        return tensor_of(self.output.normed(self._through(token_ids, None))).float()

    def _through(self, token_ids: Tensor, cache: Cache | None, last_only: bool = False) -> Tensor:
        """The output of the last layer; with ``last_only``, that of the last token at least."""
        if cache is None and self.config.key_sources:  # layers find others' keys in a cache
            batch, tokens = token_ids.shape
            cache = self.backend.cache(self.config, batch=batch, capacity=tokens, dtype=self.dtype)
        x, positions, own = self.embedding(token_ids, cache)
        whole = self.tail if last_only and token_ids.shape[1] > 1 else len(self.blocks)
        for block, given in zip(self.blocks[:whole], own[:whole], strict=True):
            x = block(x, positions, cache, given)
        if whole < len(self.blocks):
            x, positions = x[..., -1:, :], positions.last()
            for block, given in zip(self.blocks[whole:], own[whole:], strict=True):
                x = block(x, positions, cache, None if given is None else given[:, -1:])
        return x


def _tail(config: DecoderConfig) -> int:
    """The first of the last layers that leave nothing in the cache: of a prompt, they need the last token alone."""
    keeps = [config.has_own_keys(i) or config.is_recurrent(i) for i in range(config.num_layers)]
    return config.num_layers - [*reversed(keeps), True].index(True)
