"""The decoder: one set of blocks for every family, parametrised by ``DecoderConfig``.

Shapes: ``b`` batch, ``t`` tokens of this call, ``s`` positions in the cache, ``h`` heads, ``d`` head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .architecture import Architecture, Module
from .cache import KVCache
from .config import DecoderConfig, Rope
from .torch_kernels import Kernels, NormWeights, Places
from .weights import Projection, Weights

Observer = Callable[[Module, Tensor], None]
"""Told the first linear of a group and the group's input ``[b, t, in]``, before it is multiplied."""


class Norm:
    """RMSNorm (arXiv:1910.07467) or LayerNorm, computed in float32."""

    def __init__(self, config: DecoderConfig, module: Module, weights: Weights) -> None:
        bias = weights.tensor(module, "bias") if module.bias else None
        self.weights = NormWeights(
            config.norm == "rms", config.norm_eps, weights.tensor(module), bias
        )
        self.kernels = weights.kernels

    def __call__(self, x: Tensor) -> Any:
        return self.kernels.norm(x, self.weights)


class Rotary:
    """Rotary positions (arXiv:2104.09864), the two halves of a head as the pairs' members."""

    def __init__(self, config: DecoderConfig, rope: Rope) -> None:
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
        self.frequencies = _scaled(1.0 / (rope.theta**exponents), rope)

    def tables(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin ``[t, d]`` for positions ``[t]``."""
        angles = positions.float()[:, None] * self.frequencies
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def _scaled(frequencies: Tensor, rope: Rope) -> Tensor:
    """Radians a position, stretched to a longer context."""
    if rope.kind == "default":
        return frequencies
    slow = frequencies / rope.factor
    if rope.kind == "linear":
        return slow
    turns = rope.original_positions * frequencies / (2 * math.pi)
    kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    return torch.lerp(slow, frequencies, kept.clamp(0, 1))


class Attention:
    """Causal attention with grouped key/value heads."""

    def __init__(
        self, config: DecoderConfig, layer: int, qkv: Projection, out: Projection, kernels: Kernels
    ) -> None:
        self.config = config
        self.layer = layer
        self.qkv = qkv
        self.out = out
        self.kernels = kernels

    def __call__(self, x: Any, places: Places, cache: KVCache | None, residual: Tensor) -> Tensor:
        y = self.kernels.attend(self.qkv(x), self.config, self.layer, places, cache)
        return self.out(y, residual=residual)[0]


class FeedForward:
    """``down(act(up(x)))``, or ``down(act(gate(x)) * up(x))``."""

    def __init__(
        self, config: DecoderConfig, wide: Projection, down: Projection, kernels: Kernels
    ) -> None:
        self.activation = config.activation
        self.wide = wide
        self.down = down
        self.kernels = kernels

    def __call__(self, x: Any, residual: Tensor) -> Tensor:
        inner = self.kernels.inner(self.wide, x, self.activation)
        return self.down(inner, residual=residual)[0]


class Block:
    """One layer: attention and FFN, each with its norm (before, or after the sum) and residual."""

    def __init__(
        self,
        architecture: Architecture,
        layer: int,
        weights: Weights,
        observe: Observer | None = None,
    ) -> None:
        config, modules = architecture.config, architecture.layer(layer)

        def projection(*roles: str) -> Projection:
            group = [modules[role] for role in roles if role in modules]
            project = weights.projection(group)
            return project if observe is None else _observed(project, group[0], observe)

        self.pre_norm = config.pre_norm
        self.attn_norm = Norm(config, modules["attn_norm"], weights)
        self.kernels = kernels = weights.kernels
        qkv, out = projection("q", "k", "v"), projection("o")
        self.attention = Attention(config, layer, qkv, out, kernels)
        self.mlp_norm = Norm(config, modules["mlp_norm"], weights)
        self.ffn = FeedForward(config, projection("gate", "up"), projection("down"), kernels)

    def __call__(self, x: Tensor, places: Places, cache: KVCache | None = None) -> Tensor:
        if self.pre_norm:
            x = self.attention(self.attn_norm(x), places, cache, x)
            return self.ffn(self.mlp_norm(x), x)
        x = self.kernels.value(self.attn_norm(self.attention(x, places, cache, x)))
        return self.kernels.value(self.mlp_norm(self.ffn(x, x)))


def _observed(project: Projection, module: Module, observe: Observer) -> Projection:
    def observing(x: Tensor, residual: Tensor | None = None) -> Any:
        observe(module, x)
        return project(x, residual=residual)

    return observing


class Embedding:
    """Token (and learned position) embeddings, and rotary tables for the blocks."""

    def __init__(self, architecture: Architecture, weights: Weights, dtype: torch.dtype) -> None:
        config, modules = architecture.config, architecture.outside()
        self.dtype = dtype
        self.kernels = weights.kernels
        self.tokens = weights.lookup(modules["embed"])
        self.positions = weights.lookup(modules["positions"]) if "positions" in modules else None
        self.offset = config.position_offset
        self.project = _optional(weights, modules.get("project_in"))
        self.rotary = Rotary(config, config.rope) if config.rope is not None else None

    def __call__(self, token_ids: Tensor, cache: KVCache | None = None) -> tuple[Tensor, Any]:
        """``[b, t]`` -> ``[b, t, hidden]`` and the places of these tokens, behind those in the cache."""
        places = self.kernels.places(self.rotary, cache, token_ids, self.dtype)
        x = self.tokens(token_ids)
        if self.project is not None:
            (x,) = self.project(x)
        if self.positions is not None:
            x = x + self.positions(places.positions + self.offset)
        return x, places


def _optional(weights: Weights, module: Module | None) -> Projection | None:
    return weights.projection([module]) if module is not None else None


class Output:
    """Final norm and head: hidden states to logits."""

    def __init__(self, architecture: Architecture, weights: Weights) -> None:
        config, modules = architecture.config, architecture.outside()
        self.final_norm = (
            Norm(config, modules["final_norm"], weights) if "final_norm" in modules else None
        )
        self.project = _optional(weights, modules.get("project_out"))
        self.head = weights.projection([modules["embed" if config.tied else "head"]])

    def __call__(self, x: Tensor) -> Tensor:
        """``[b, t, hidden]`` -> float32 ``[b, t, vocab]``."""
        x = self.final_norm(x) if self.final_norm is not None else x
        x = self.project(x)[0] if self.project is not None else x
        return self.head(x)[0].float()


class Decoder:
    """Embedding, blocks, final norm and head."""

    def __init__(self, architecture: Architecture, weights: Weights, dtype: torch.dtype) -> None:
        self.config = config = architecture.config
        self.dtype = dtype
        self.kernels = weights.kernels
        self.embedding = Embedding(architecture, weights, dtype)
        self.blocks = [Block(architecture, i, weights) for i in range(config.num_layers)]
        self.output = Output(architecture, weights)

    @torch.inference_mode()
    def forward(
        self, token_ids: Tensor, cache: KVCache | None = None, *, last_only: bool = False
    ) -> Tensor:
        """Logits, float32 ``[b, t, vocab]`` (``[b, 1, vocab]`` with ``last_only``), for token ids ``[b, t]``.

        With a cache the tokens stand behind those in it, and are added to it.
        """
        x, places = self.embedding(token_ids, cache)
        for block in self.blocks:
            x = block(x, places, cache)
        if cache is not None:
            cache.advance(token_ids.shape[1])
        return self.output(x[:, -1:] if last_only else x)
