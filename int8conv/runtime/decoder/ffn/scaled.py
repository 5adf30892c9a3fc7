"""Multipliers of linears' outputs, for families that train with them (Falcon-H1, arXiv:2507.22448, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...backends.parts import Hidden, Projection


def scaled(project: Projection, *scales: float) -> Projection:
    """Linears of one input with a multiplier each; a residual is added to the product."""

    def scaling(x: Hidden, *, residual: Tensor | None = None) -> Sequence[Tensor]:
        outputs = [y * scale for y, scale in zip(project(x), scales, strict=True)]
        return outputs if residual is None else [outputs[0] + residual]

    return scaling
