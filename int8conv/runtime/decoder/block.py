"""One layer of the decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..backends.interface import Positions
from ..backends.parts import BlockParts, Hidden, Projection, tensor_of
from ..models.architecture import Architecture, Module
from ..weights.weights import Weights
from .attention import Attention, GatedAttention
from .attention_spec import AttentionSpec
from .cache import Cache
from .ffn.beside import BesideExperts
from .ffn.building import build_ffn
from .ffn.feed_forward import FeedForward
from .ffn.mixture import MixtureOfExperts
from .latent_attention import LatentAttention
from .mixers import Mixer, SideBySide, recurrent_mixer
from .norm import Norm, norm_weights
from .residual.altup import AltUpLayer
from .residual.laurel import Laurel
from .residual.layer_input import LayerInput

Observer = Callable[[Module, Tensor], None]
"""Called with the first linear of a group and the group's input ``[b, t, in]`` before the product."""


class Block:
    """One layer: attention (or what stands in its place) and FFN, each with its norms and residual."""

    def __init__(
        self,
        architecture: Architecture,
        layer: int,
        weights: Weights,
        observe: Observer | None = None,
        cache_layer: int | None = None,
    ) -> None:
        """``cache_layer``: the layer of the cache to use, if it differs from ``layer``."""
        self.config = config = architecture.config
        modules = architecture.layer(layer)
        projection = projections(modules, weights, observe)
        self.backend = weights.backend
        self.attention = self._mixer(
            layer, modules, weights, projection, cache_layer, observed=observe is not None
        )
        self.ffn = build_ffn(config, layer, modules, weights, projection)
        norms = (
            None if role == "mlp_norm" and isinstance(self.ffn, BesideExperts) else Norm.of(config, modules, role, weights)
            for role in ("attn_norm", "attn_post_norm", "mlp_norm", "mlp_post_norm")
        )  # fmt: skip
        self.attn_norm, self.attn_post_norm, self.mlp_norm, self.mlp_post_norm = norms
        self.laurel = Laurel(config, modules, weights, projection) if config.altup else None
        own = config.layer_input is not None and config.altup is None  # else ``AltUpLayer`` adds it
        self.input = LayerInput(config, modules, weights, projection) if own else None
        self.scale = weights.tensor(modules["layer_scale"]) if config.layer_scaled else None
        more = self.laurel or self.input or self.scale is not None
        plain = type(self.attention) is Attention and self.ffn is not None and not more
        self.fused = self.backend.fuse_layer(self.parts) if plain and observe is None else None

    def _mixer(
        self, layer: int, modules: Mapping[str, Module], weights: Weights, projection: Callable[..., Projection],
        cache_layer: int | None, *, observed: bool,
    ) -> Mixer | None:  # fmt: skip
        """Attention, a recurrence, or both, with their layers of the cache."""
        config, attention, recurrence = self.config, None, None
        if config.latent is not None:
            return LatentAttention(config, modules, weights, projection, cache_layer, observed=observed)  # fmt: skip
        if config.is_recurrent(layer):
            number = config.state_layer(layer) if cache_layer is None else cache_layer
            recurrence = recurrent_mixer(config, modules, weights, projection, number)
        if config.has_attention(layer):
            norms = [
                norm_weights(config, modules[role], weights) if role in modules else None
                for role in ("q_norm", "k_norm")
            ]
            sinks = weights.tensor(modules["sinks"], dtype=torch.float32) if config.sinks else None
            device = self.backend.device
            spec = AttentionSpec.of(config, layer, norms[0], norms[1], cache_layer, sinks, device)
            kind = GatedAttention if config.gated_attention else Attention
            qkv, out = projection("qkv", "q", "k", "v"), projection("o")
            attention = kind(config, spec, qkv, out, self.backend)
        if recurrence is not None and attention is not None:
            return SideBySide(config, recurrence, attention)
        return recurrence or attention

    @property
    def parts(self) -> BlockParts:
        """The description of the block for a backend."""
        norms = (self.attn_norm, self.attn_post_norm, self.mlp_norm, self.mlp_post_norm)
        weights = [None if norm is None else norm.weights for norm in norms]
        ffn = self.ffn.parts if isinstance(self.ffn, FeedForward) else None
        attention = self.attention
        assert isinstance(attention, Attention)
        return BlockParts(self.config, attention.spec, attention.qkv, attention.out, ffn, *weights)

    @property
    def needs_host_sync(self) -> bool:
        """Whether a step has to read from the device which experts it needs."""
        return isinstance(self.ffn, MixtureOfExperts | BesideExperts) and self.ffn.needs_host_sync

    def __call__(
        self, x: Tensor, positions: Positions, cache: Cache | None = None, own: Tensor | None = None
    ) -> Tensor:
        """``[b, t, hidden]`` -> the same; ``own``: this layer's embeddings of the tokens, if it has such."""
        y = self.fused(x, positions, cache) if self.fused is not None else None
        if y is None:
            y = self._by_parts(x, positions, cache)
        if self.input is not None:
            assert own is not None
            y = y + self.input(y, own)
        return y if self.scale is None else y * self.scale

    def _by_parts(self, x: Tensor, positions: Positions, cache: Cache | None) -> Tensor:
        mixer, ffn = self.attention, self.ffn

        def attention(h: Hidden, residual: Tensor | None) -> Tensor:
            assert mixer is not None
            return mixer(h, positions, cache, residual)

        if self.config.parallel:
            assert ffn is not None
            h = x if self.attn_norm is None else self.attn_norm(x)
            return ffn(h if self.mlp_norm is None else self.mlp_norm(x), attention(h, x))
        if self.config.norms == "after sum":
            assert self.attn_norm is not None and self.mlp_norm is not None and ffn is not None
            x = tensor_of(self.attn_norm(attention(x, x)))
            return tensor_of(self.mlp_norm(ffn(x, x)))
        # a layer may have only one of the two (Nemotron-H, arXiv:2504.03624, section 2.1)
        if mixer is not None:
            x = self._add(x, self.attn_norm, attention, self.attn_post_norm, self.laurel)
        return x if ffn is None else self._add(x, self.mlp_norm, ffn, self.mlp_post_norm)

    def _add(
        self, x: Tensor, norm: Norm | None, branch: Callable[[Hidden, Tensor | None], Tensor], post: Norm | None,
        laurel: Laurel | None = None,
    ) -> Tensor:  # fmt: skip
        """``x`` plus the output of a branch."""
        h = x if norm is None else norm(x)
        if post is None and self.config.residual_scale == 1:
            return branch(h, x)
        y = branch(h, None)
        y = y if post is None else tensor_of(post(y))
        y = x + y * self.config.residual_scale
        return y if laurel is None else laurel(h, y)


def build_layer(
    architecture: Architecture, layer: int, weights: Weights, observe: Observer | None = None, cache_layer: int | None = None
) -> Block | AltUpLayer:  # fmt: skip
    """A layer, with its other residual streams if there are several; the arguments are those of ``Block``."""
    block = Block(architecture, layer, weights, observe, cache_layer)
    if architecture.config.altup is None:
        return block
    modules = architecture.layer(layer)
    projection = projections(modules, weights, observe)
    return AltUpLayer(architecture.config, modules, weights, projection, block)


def projections(
    modules: Mapping[str, Module], weights: Weights, observe: Observer | None
) -> Callable[..., Projection]:
    """A function from roles of linears that share an input (those of them that a layer has) to their projection."""

    def projection(*roles: str) -> Projection:
        group = [modules[role] for role in roles if role in modules]
        project = weights.projection(group)
        quantized = observe is not None and group[0].group
        return _observed(project, group[0], observe) if observe and quantized else project

    return projection


def _observed(project: Projection, module: Module, observe: Observer) -> Projection:
    def observing(x: Hidden, *, residual: Tensor | None = None) -> Sequence[Tensor]:
        value = tensor_of(x)
        observe(module, value)
        return project(value, residual=residual)

    return observing
