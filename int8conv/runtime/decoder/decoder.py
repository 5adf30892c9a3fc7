"""The decoder: one implementation for all families, parametrised by ``DecoderConfig``.

Shapes: ``b`` batch, ``t`` tokens of a call, ``s`` positions in the cache, ``h`` heads, ``d`` head size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..backends.interface import Backend, Positions
from ..backends.parts import BlockParts, FeedForwardParts, Hidden, Projection, tensor_of
from ..models.architecture import Architecture, Module
from ..models.config import DecoderConfig
from ..weights.weights import Weights
from .attention_spec import AttentionSpec
from .cache import Cache
from .clamped import ClampedFeedForward
from .latent_attention import LatentAttention
from .mixers import Mixer, SideBySide, recurrent_mixer
from .mixture import MixtureOfExperts
from .norms import NormWeights
from .rotary import Rotary
from .scaled import scaled

Observer = Callable[[Module, Tensor], None]
"""Called with the first linear of a group and the group's input ``[b, t, in]`` before the product."""


def norm_weights(config: DecoderConfig, module: Module, weights: Weights) -> NormWeights:
    """A norm's parameters."""
    weight = weights.tensor(module)
    if config.norm_offset:  # in 16 bits, a sum near 1 would lose most bits of the weight
        weight = weight.float() + config.norm_offset
    bias = weights.tensor(module, "bias") if module.bias else None
    return NormWeights(config.norm == "rms", config.norm_eps, weight, bias)


class Norm:
    """RMSNorm (arXiv:1910.07467) or LayerNorm, computed in float32."""

    def __init__(self, config: DecoderConfig, module: Module, weights: Weights) -> None:
        self.weights = norm_weights(config, module, weights)
        self.backend = weights.backend

    def __call__(self, x: Tensor) -> Hidden:
        return self.backend.norm(x, self.weights)


class Attention:
    """Causal attention with grouped key/value heads."""

    def __init__(
        self, config: DecoderConfig, spec: AttentionSpec, qkv: Projection, out: Projection, backend: Backend
    ) -> None:  # fmt: skip
        self.config = config
        self.spec = spec
        self.qkv = qkv
        self.out = out
        self.backend = backend

    def __call__(
        self, x: Hidden, positions: Positions, cache: Cache | None, residual: Tensor | None
    ) -> Tensor:
        y = self.backend.attend(self._split(self.qkv(x)), self.spec, positions, cache)
        return self.out(y, residual=residual)[0]

    def _split(self, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """q, k and v ``[b, t, heads * d]``."""
        c = self.config
        if c.fused_qkv is None:
            return outputs
        queries, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        if c.fused_qkv == "rows":
            return outputs[0].split_with_sizes([queries, keys, keys], dim=-1)
        group = c.num_heads // c.num_kv_heads
        y = outputs[0]
        each = y.view(*y.shape[:-1], c.num_kv_heads, group + 2, c.head_dim)
        parts = each.split_with_sizes([group, 1, 1], dim=-2)
        return [part.flatten(-3) for part in parts]


class GatedAttention(Attention):
    """``out(attention(x) * sigmoid(gate(x)))`` (arXiv:2505.06708); the query projection has each head's query and gate."""

    def __call__(
        self, x: Hidden, positions: Positions, cache: Cache | None, residual: Tensor | None
    ) -> Tensor:
        asked, k, v = self.qkv(x)
        q, gate = asked.view(*asked.shape[:-1], self.spec.heads, -1).chunk(2, dim=-1)
        y = self.backend.attend([q.flatten(-2), k, v], self.spec, positions, cache)
        return self.out(y * torch.sigmoid(gate.flatten(-2)), residual=residual)[0]


class FeedForward:
    """``down(act(up(x)))``, or ``down(act(gate(x)) * up(x))``."""

    def __init__(
        self, config: DecoderConfig, wide: Projection, down: Projection, backend: Backend
    ) -> None:
        self.parts = FeedForwardParts(wide, down, config.activation, config.gated)
        self.backend = backend

    def __call__(self, x: Hidden, residual: Tensor | None = None) -> Tensor:
        parts = self.parts
        inner = self.backend.inner(parts.wide, x, parts.activation, parts.gated)
        return parts.down(inner, residual=residual)[0]


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

        def projection(*roles: str) -> Projection:
            group = [modules[role] for role in roles if role in modules]
            project = weights.projection(group)
            quantized = observe is not None and group[0].group
            return _observed(project, group[0], observe) if observe and quantized else project

        def norm(role: str) -> Norm | None:
            return Norm(config, modules[role], weights) if role in modules else None

        def ffn(prefix: str = "") -> FeedForward | ClampedFeedForward:
            wide = projection(f"{prefix}gate_up", f"{prefix}gate", f"{prefix}up")
            down = projection(f"{prefix}down")
            if config.swiglu_limit is not None:
                return ClampedFeedForward(wide, down, config.swiglu_alpha, config.swiglu_limit)
            if (config.gate_scale, config.ffn_scale) != (1, 1):
                wide, down = scaled(wide, config.gate_scale, 1.0), scaled(down, config.ffn_scale)
            return FeedForward(config, wide, down, self.backend)

        self.backend = weights.backend
        self.attn_norm, self.attn_post_norm = norm("attn_norm"), norm("attn_post_norm")
        self.mlp_norm, self.mlp_post_norm = norm("mlp_norm"), norm("mlp_post_norm")
        self.attention = self._mixer(
            layer, modules, weights, projection, cache_layer, observed=observe is not None
        )
        self.ffn: FeedForward | ClampedFeedForward | MixtureOfExperts | None = None
        if config.experts is not None and config.is_sparse(layer):
            experts = [ffn(f"{expert}.") for expert in range(config.experts.count)]
            shared = ffn("shared_") if config.experts.shared_size else None
            gate = projection("shared_router") if "shared_router" in modules else None
            bias = modules.get("router_bias")
            self.ffn = MixtureOfExperts(
                config.experts, projection("router"), experts, shared, gate, self.backend,
                None if bias is None else weights.tensor(bias, dtype=torch.float32),
            )  # fmt: skip
        elif config.has_ffn(layer):
            self.ffn = ffn()
        plain = observe is None and type(self.attention) is Attention and self.ffn is not None
        self.fused = self.backend.fuse_layer(self.parts) if plain else None

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
            spec = AttentionSpec.of(config, layer, norms[0], norms[1], cache_layer, sinks)
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

    def __call__(self, x: Tensor, positions: Positions, cache: Cache | None = None) -> Tensor:
        y = self.fused(x, positions, cache) if self.fused is not None else None
        return self._by_parts(x, positions, cache) if y is None else y

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
            x = self._add(x, self.attn_norm, attention, self.attn_post_norm)
        return x if ffn is None else self._add(x, self.mlp_norm, ffn, self.mlp_post_norm)

    def _add(
        self, x: Tensor, norm: Norm | None, branch: Callable[[Hidden, Tensor | None], Tensor], post: Norm | None
    ) -> Tensor:  # fmt: skip
        """``x`` plus the output of a branch."""
        h = x if norm is None else norm(x)
        if post is None and self.config.residual_scale == 1:
            return branch(h, x)
        y = branch(h, None)
        y = y if post is None else tensor_of(post(y))
        return x + y * self.config.residual_scale


def _observed(project: Projection, module: Module, observe: Observer) -> Projection:
    def observing(x: Hidden, *, residual: Tensor | None = None) -> Sequence[Tensor]:
        value = tensor_of(x)
        observe(module, value)
        return project(value, residual=residual)

    return observing


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
        ropes = [rope for rope in (config.rope, config.local_rope) if rope is not None]
        self.rotaries = [Rotary(rope, config.head_dim) for rope in ropes]

    def __call__(self, token_ids: Tensor, cache: Cache | None = None) -> tuple[Tensor, Positions]:
        """``[b, t]`` -> ``[b, t, hidden]`` and the positions of these tokens, after those in the cache."""
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
        return x, positions


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
        self._architecture = architecture
        self.head = _optional(weights, architecture.head() if architecture.has_head else None)
        self.scale, self.softcap = config.logit_scale, config.logit_softcap

    def __call__(self, x: Tensor) -> Tensor:
        """``[b, t, hidden]`` -> float32 ``[b, t, vocab]``."""
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
        """Through the final norm alone."""
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
        self.blocks = [Block(architecture, i, weights) for i in range(config.num_layers)]
        self.output = Output(architecture, weights)

    def cache(self, *, batch: int, capacity: int) -> Cache:
        """An empty cache for ``batch`` sequences of ``capacity`` positions each."""
        return self.backend.cache(self.config, batch=batch, capacity=capacity, dtype=self.kv_cache)

    @property
    def needs_host_sync(self) -> bool:
        """Whether a step of one token per sequence requires the host to wait for the device."""
        return any(
            isinstance(each.ffn, MixtureOfExperts) and each.ffn.needs_host_sync
            for each in self.blocks
        )

    @torch.inference_mode()
    def forward(
        self, token_ids: Tensor, cache: Cache | None = None, *, last_only: bool = False
    ) -> Tensor:
        """Logits for token ids ``[b, t]``: float32 ``[b, t, vocab]``, or ``[b, 1, vocab]`` with ``last_only``.

        With a cache, the tokens follow those in it and are appended to it.
        """
        x, positions = self.embedding(token_ids, cache)
        for block in self.blocks:
            x = block(x, positions, cache)
        if cache is not None:
            cache.advance(token_ids.shape[1])
        return self.output(x[:, -1:] if last_only else x)

    @torch.inference_mode()
    def hidden(self, token_ids: Tensor) -> Tensor:
        """Hidden states behind the final norm, float32 ``[b, t, hidden]``, for token ids ``[b, t]``."""
        x, positions = self.embedding(token_ids, None)
        for block in self.blocks:
            x = block(x, positions, None)
        return tensor_of(self.output.normed(x)).float()
