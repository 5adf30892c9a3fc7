"""Embeddings of the tokens for each layer (Gemma 3n and Gemma 4, "per-layer embeddings").

    e = (own_embedding(token) sqrt(size) + norm(project(x_0) / sqrt(hidden))) / sqrt(2)      [layers, size], from the embedding x_0
    behind the FFN of a layer:   norm(down(act(gate(x)) * e_layer))   is added to the residual stream

Between its linears it runs in PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ...backends.parts import Projection, tensor_of
from ...backends.torch_backend import ACTIVATIONS
from ...models.config import DecoderConfig
from ...models.modules import Module
from ...weights.weights import Weights
from ..norm import Norm


class LayerEmbedding:
    """Such embeddings for all layers."""

    def __init__(
        self, config: DecoderConfig, modules: Mapping[str, Module], weights: Weights
    ) -> None:
        assert config.layer_input is not None
        self.config = config.layer_input
        self.tokens = weights.lookup(modules["input_embed"])
        self.project = weights.projection([modules["input_project"]])
        self.norm = Norm(config, modules["input_norm"], weights)
        self.scale = float(torch.tensor(math.sqrt(self.config.size), dtype=weights.dtype))

    def __call__(self, token_ids: Tensor, x: Tensor) -> Sequence[Tensor]:
        """For token ids ``[b, t]`` and their embeddings ``[b, t, hidden]``: ``[b, t, size]`` for each layer."""
        known = token_ids.where(token_ids < self.config.vocab_size, 0)
        own = self.tokens(known).view(*known.shape, -1, self.config.size) * self.scale
        context = self.project(x)[0] * x.shape[-1] ** -0.5
        both = own + tensor_of(self.norm(context.view(own.shape)))
        each: Sequence[Tensor] = (both * math.sqrt(0.5)).unbind(-2)
        return each


class LayerInput:
    """What a layer adds."""

    def __init__(
        self, config: DecoderConfig, modules: Mapping[str, Module], weights: Weights, projection: Callable[..., Projection]
    ) -> None:  # fmt: skip  # ``projection``: called with roles of linears that share an input
        self.gate, self.down = projection("input_gate"), projection("input_down")
        self.norm = Norm(config, modules["input_post_norm"], weights)
        self.activation = ACTIVATIONS[config.activation]

    def __call__(self, x: Tensor, own: Tensor) -> Tensor:
        """``[b, t, hidden]``, to be added, for the residual stream and the layer's embeddings ``[b, t, size]``."""
        inner = self.activation(self.gate(x)[0]) * own
        return tensor_of(self.norm(self.down(inner)[0]))
