"""The decoder: one set of blocks for every family, parametrised by ``DecoderConfig``.

Shapes: ``b`` batch, ``t`` tokens of this call, ``s`` positions in the cache, ``h`` heads, ``d`` head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from .architecture import Architecture, Module
from .cache import KVCache
from .config import DecoderConfig, Rope
from .weights import Projection, Weights

Observer = Callable[[Module, Tensor], None]
"""Told the first linear of a group and the group's input ``[b, t, in]``, before it is multiplied."""

_ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class Norm:
    """RMSNorm (arXiv:1910.07467) or LayerNorm, computed in float32."""

    def __init__(self, config: DecoderConfig, module: Module, weights: Weights) -> None:
        self.eps = config.norm_eps
        self.rms = config.norm == "rms"
        self.weight = weights.tensor(module)
        self.bias = weights.tensor(module, "bias") if module.bias else None

    def __call__(self, x: Tensor) -> Tensor:
        if not self.rms:
            return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return wide.to(x.dtype) * self.weight


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

    @staticmethod
    def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        """Rotate ``[b, h, t, d]``."""
        cos, sin = tables
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin


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

    def __init__(self, config: DecoderConfig, layer: int, qkv: Projection, out: Projection) -> None:
        self.config = config
        self.layer = layer
        self.qkv = qkv
        self.out = out

    def __call__(
        self, x: Tensor, tables: tuple[Tensor, Tensor] | None, cache: KVCache | None
    ) -> Tensor:
        tokens, size = x.shape[1], self.config.head_dim
        q, k, v = (y.view(*y.shape[:2], -1, size).transpose(1, 2) for y in self.qkv(x))  # b h t d
        if tables is not None:
            q, k = Rotary.rotate(q, tables), Rotary.rotate(k, tables)
        past = 0
        if cache is not None:
            past = cache.length
            k, v = cache.update(self.layer, k, v)
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=_causal_mask(tokens, past) if past and tokens > 1 else None,
            is_causal=past == 0 and tokens > 1,
            enable_gqa=self.config.num_heads != self.config.num_kv_heads,
        )  # fmt: skip
        return self.out(y.transpose(1, 2).flatten(2))[0]


def _causal_mask(tokens: int, past: int) -> Tensor:
    """True where a token ``[t]`` may look at a position ``[s]``."""
    return torch.ones(tokens, past + tokens, dtype=torch.bool).tril(past)


class FeedForward:
    """``down(act(up(x)))``, or ``down(act(gate(x)) * up(x))``."""

    def __init__(self, config: DecoderConfig, wide: Projection, down: Projection) -> None:
        self.activation = _ACTIVATIONS[config.activation]
        self.wide = wide
        self.down = down

    def __call__(self, x: Tensor) -> Tensor:
        first, *rest = self.wide(x)
        y = self.activation(first)
        return self.down(y * rest[0] if rest else y)[0]


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
        self.attention = Attention(config, layer, projection("q", "k", "v"), projection("o"))
        self.mlp_norm = Norm(config, modules["mlp_norm"], weights)
        self.ffn = FeedForward(config, projection("gate", "up"), projection("down"))

    def __call__(
        self, x: Tensor, tables: tuple[Tensor, Tensor] | None, cache: KVCache | None = None
    ) -> Tensor:
        if self.pre_norm:
            x = x + self.attention(self.attn_norm(x), tables, cache)
            return x + self.ffn(self.mlp_norm(x))
        x = self.attn_norm(x + self.attention(x, tables, cache))
        return self.mlp_norm(x + self.ffn(x))


def _observed(project: Projection, module: Module, observe: Observer) -> Projection:
    def observing(x: Tensor) -> Any:
        observe(module, x)
        return project(x)

    return observing


class Embedding:
    """Token (and learned position) embeddings, and rotary tables for the blocks."""

    def __init__(self, architecture: Architecture, weights: Weights, dtype: torch.dtype) -> None:
        config, modules = architecture.config, architecture.outside()
        self.dtype = dtype
        self.tokens = weights.lookup(modules["embed"])
        self.positions = weights.lookup(modules["positions"]) if "positions" in modules else None
        self.offset = config.position_offset
        self.project = _optional(weights, modules.get("project_in"))
        self.rotary = Rotary(config, config.rope) if config.rope is not None else None

    def __call__(self, token_ids: Tensor, past: int) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """``[b, t]`` -> ``[b, t, hidden]`` and the rotary tables of these positions."""
        x = self.tokens(token_ids)
        if self.project is not None:
            (x,) = self.project(x)
        positions = torch.arange(past, past + token_ids.shape[1])
        if self.positions is not None:
            x = x + self.positions(positions + self.offset)
        return x, self.rotary.tables(positions, self.dtype) if self.rotary else None


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
        x, tables = self.embedding(token_ids, cache.length if cache is not None else 0)
        for block in self.blocks:
            x = block(x, tables, cache)
        if cache is not None:
            cache.advance(token_ids.shape[1])
        return self.output(x[:, -1:] if last_only else x)
