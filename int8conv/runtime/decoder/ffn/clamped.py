"""A gated FFN with limits (gpt-oss, arXiv:2508.10925, section 2): ``down(inner)``, where one linear with alternating rows gives both

gate = min(y[0::2], limit);   up = clamp(y[1::2], -limit, limit)
inner = (up + 1) * gate * sigmoid(alpha * gate)
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...backends.parts import FeedForwardParts, Hidden, Projection


class ClampedFeedForward:
    """An FFN or expert."""

    def __init__(self, wide: Projection, down: Projection, alpha: float, limit: float) -> None:
        self.parts = FeedForwardParts(wide, down, "silu", True, (alpha, limit))
        self.alpha, self.limit = alpha, limit

    def __call__(self, x: Hidden, residual: Tensor | None = None) -> Tensor:
        """``[..., hidden]`` -> the same, with ``residual`` added."""
        inner = clamped_swiglu(self.parts.wide(x)[0], self.alpha, self.limit)
        return self.parts.down(inner, residual=residual)[0]


def clamped_swiglu(y: Tensor, alpha: float, limit: float) -> Tensor:
    """``[..., 2 * inner]`` -> ``[..., inner]``."""
    gate = y[..., ::2].clamp(max=limit)
    up = y[..., 1::2].clamp(-limit, limit)
    return (up + 1) * gate * torch.sigmoid(alpha * gate)
