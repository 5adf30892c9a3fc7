"""A norm of the decoder, from its module."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..backends.parts import Hidden
from ..models.config import DecoderConfig
from ..models.modules import Module
from ..weights.weights import Weights
from .norms import NormWeights


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

    @classmethod
    def of(
        cls, config: DecoderConfig, modules: Mapping[str, Module], role: str, weights: Weights
    ) -> Norm | None:
        """The norm with a role; None if there is none."""
        return cls(config, modules[role], weights) if role in modules else None

    def __call__(self, x: Tensor) -> Hidden:
        return self.backend.norm(x, self.weights)
