"""An FFN and experts that read the same residual stream, each with its own norms (Gemma 4):

    y = norm_1(ffn(norm_in(x))) + norm_2(experts(norm_experts(x)))

The router reads x itself, divided by its root mean square and times ``scale / sqrt(hidden)``; the weights of the chosen experts, which
add up to 1, are multiplied by a number of each expert. Runs in PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...backends.parts import Hidden, tensor_of
from ...models.config import DecoderConfig
from ...models.modules import Module
from ...weights.weights import Weights
from ..norm import Norm
from ..norms import NormWeights, normalised
from .feed_forward import FeedForward
from .mixture import MixtureOfExperts


class BesideExperts:
    """Such a pair; takes the residual stream, as its norms are its own. No backend fuses it."""

    parts = None

    def __init__(
        self, config: DecoderConfig, modules: Mapping[str, Module], weights: Weights, ffn: FeedForward,
        experts: MixtureOfExperts,
    ) -> None:  # fmt: skip
        self.ffn, self.experts = ffn, experts
        roles = ("mlp_norm", "mlp_inner_norm", "experts_norm", "experts_post_norm")
        self.norms = [Norm(config, modules[role], weights) for role in roles]
        scale = weights.tensor(modules["router_scale"], dtype=torch.float32)
        self.routed = NormWeights(True, config.norm_eps, scale * config.hidden_size**-0.5, None)

    @property
    def needs_host_sync(self) -> bool:
        """As of the experts."""
        return self.experts.needs_host_sync

    def __call__(self, x: Hidden, residual: Tensor | None = None) -> Tensor:
        """``[b, t, hidden]`` -> the same, with ``residual`` added."""
        value = tensor_of(x)
        before, inner, before_experts, behind_experts = self.norms
        y = tensor_of(inner(self.ffn(before(value))))
        chosen = self.experts(before_experts(value), routed=normalised(value, self.routed))
        y = y + tensor_of(behind_experts(chosen))
        return y if residual is None else residual + y
