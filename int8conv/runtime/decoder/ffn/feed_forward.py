"""The plain FFN."""

from __future__ import annotations

from torch import Tensor

from ...backends.interface import Backend
from ...backends.parts import FeedForwardParts, Hidden, Projection
from ...models.config import DecoderConfig


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
