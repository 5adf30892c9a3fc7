"""The FFN of a layer, from its modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from ...backends.parts import Projection
from ...models.config import DecoderConfig
from ...models.modules import Module
from ...weights.weights import Weights
from .beside import BesideExperts
from .clamped import ClampedFeedForward
from .feed_forward import FeedForward
from .mixture import MixtureOfExperts
from .scaled import scaled
from .sparse_gate import SparselyGated
from .xielu import XieluFeedForward

Plain = FeedForward | ClampedFeedForward | SparselyGated | XieluFeedForward
Ffn = Plain | MixtureOfExperts | BesideExperts


def build_ffn(
    config: DecoderConfig, layer: int, modules: Mapping[str, Module], weights: Weights, projection: Callable[..., Projection]
) -> Ffn | None:  # fmt: skip
    """A layer's FFN, experts, or both; None if it has neither. ``projection``: called with roles of linears that share an input."""

    def plain(prefix: str = "") -> Plain:
        wide = projection(f"{prefix}gate_up", f"{prefix}gate", f"{prefix}up")
        down = projection(f"{prefix}down")
        if config.swiglu_limit is not None:
            return ClampedFeedForward(wide, down, config.swiglu_alpha, config.swiglu_limit)
        if config.activation == "xielu":
            return XieluFeedForward(modules, weights, wide, down)
        if config.sparse_gates and config.sparse_gates[layer]:
            return SparselyGated(wide, down, config.activation, config.sparse_gates[layer])
        if (config.gate_scale, config.ffn_scale) != (1, 1):
            wide, down = scaled(wide, config.gate_scale, 1.0), scaled(down, config.ffn_scale)
        return FeedForward(config, wide, down, weights.backend)

    if config.experts is None or not config.is_sparse(layer):
        return plain() if config.has_ffn(layer) else None
    experts = [plain(f"{expert}.") for expert in range(config.experts.count)]
    shared = plain("shared_") if config.experts.shared_size else None
    gate = projection("shared_router") if "shared_router" in modules else None
    bias, scale = (
        weights.tensor(modules[role], dtype=torch.float32) if role in modules else None
        for role in ("router_bias", "expert_scale")
    )
    mixture = MixtureOfExperts(
        config.experts,
        projection("router"),
        experts,
        shared,
        gate,
        weights.backend,
        None if bias is None else bias.flatten(),
        scale,
    )
    if not config.experts.beside_ffn:
        return mixture
    beside = plain()
    assert isinstance(beside, FeedForward)
    return BesideExperts(config, modules, weights, beside, mixture)
