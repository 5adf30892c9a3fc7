"""AltUp (arXiv:2301.13310, section 3): several residual streams, of which a layer computes one and predicts the others.

    m(x) = tanh(router(norm(x) / hidden));   p_i = x_i + sum_j predict(m(x_active))_ij x_j
    y = layer(p_active);   x_i <- p_i + (1 + correct(m(y))_i) (y - p_active)

A layer's own embedding (``layer_input``) is added to all streams but the first. Streams begin as products of the embedding, scaled to
its magnitude, and end as their mean, likewise. Runs in PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import torch
from torch import Tensor

from ...backends.interface import Positions
from ...backends.parts import Projection, tensor_of
from ...models.config import DecoderConfig
from ...models.modules import Module
from ...weights.weights import Weights
from ..cache import Cache
from ..norm import Norm
from .layer_input import LayerInput

_LEAST: Final = 1e-5
"""Least mean square of a stream that is scaled."""


class Layer(Protocol):
    """``[b, t, hidden]`` -> the same; ``own``: the layer's embeddings of the tokens."""

    def __call__(
        self, x: Tensor, positions: Positions, cache: Cache | None = None, own: Tensor | None = None
    ) -> Tensor: ...


class AltUpLayer:
    """A layer among several streams."""

    def __init__(
        self, config: DecoderConfig, modules: Mapping[str, Module], weights: Weights, projection: Callable[..., Projection],
        layer: Layer,
    ) -> None:  # fmt: skip  # ``projection``: called with roles of linears that share an input
        assert config.altup is not None
        self.config = config.altup
        self.layer = layer
        self.router, self.prediction, self.correction = (
            projection(f"altup_{role}") for role in ("router", "prediction", "correction")
        )
        self.norm = Norm(config, modules["altup_norm"], weights)
        self.scale = weights.tensor(modules["altup_scale"]) if config.altup.scaled else None
        self.input = LayerInput(config, modules, weights, projection)

    def __call__(
        self, x: Tensor, positions: Positions, cache: Cache | None = None, own: Tensor | None = None
    ) -> Tensor:
        """``[streams, b, t, hidden]`` -> the same."""
        active = self.config.active
        predicted = self._predicted(x, self._modes(x[active]))
        y = self.layer(predicted[active], positions, cache)
        change = self.correction(self._modes(y))[0] + 1
        corrected = predicted + (y - predicted[active]) * change.movedim(-1, 0)[..., None]
        first = corrected[active] if self.scale is None else corrected[active] * self.scale
        assert own is not None
        corrected[1:] += self.input(first, own)
        return corrected

    def _modes(self, x: Tensor) -> Tensor:
        """``[b, t, streams]``."""
        routed = self.router(tensor_of(self.norm(x)) / x.shape[-1])[0]
        return torch.tanh(routed.float()).to(x.dtype)

    def _predicted(self, x: Tensor, modes: Tensor) -> Tensor:
        streams = self.config.streams
        mixing = self.prediction(modes)[0].view(*modes.shape[:-1], streams, streams)
        return x + torch.einsum("jbth,btij->ibth", x, mixing)


class Streams:
    """From an embedding to the streams, and back to one."""

    def __init__(self, modules: Mapping[str, Module], weights: Weights, role: str) -> None:
        """``role``: of the matrices for one of the two ways."""
        found = [module for name, module in modules.items() if name.startswith(f"{role}.")]
        self.projections: Sequence[Projection] = [weights.projection([each]) for each in found]

    def spread(self, x: Tensor) -> Tensor:
        """``[b, t, hidden]`` -> ``[streams, b, t, hidden]``."""
        size = _mean_square(x).sqrt()
        return torch.stack([x, *(_sized(project(x)[0], size) for project in self.projections)])

    def joined(self, x: Tensor) -> Tensor:
        """``[streams, b, t, hidden]`` -> ``[b, t, hidden]``."""
        size = _mean_square(x[0]).sqrt()
        pairs = zip(self.projections, x[1:], strict=True)
        others = [_sized(project(stream)[0], size) for project, stream in pairs]
        return torch.stack([x[0], *others]).mean(0)


def _mean_square(x: Tensor) -> Tensor:
    return x.float().square().mean(-1, keepdim=True)


def _sized(x: Tensor, size: Tensor) -> Tensor:
    return (x * size / _mean_square(x).clamp(min=_LEAST).sqrt()).to(x.dtype)
