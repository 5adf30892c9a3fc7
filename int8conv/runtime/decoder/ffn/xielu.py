"""An FFN with the activation function xIELU (arXiv:2411.13010, section 3), whose two slopes are learned in each layer:

    x > 0:   a_p x^2 + beta x                            a_p = softplus(alpha_p)
    else:    a_n (expm1(min(x, eps)) - x) + beta x       a_n = beta + softplus(alpha_n)

Between its linears it runs in PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ...backends.parts import Hidden, Projection
from ...models.modules import Module
from ...weights.weights import Weights


class XieluFeedForward:
    """``down(xielu(up(x)))``; no backend fuses it."""

    parts = None

    def __init__(
        self, modules: Mapping[str, Module], weights: Weights, wide: Projection, down: Projection
    ) -> None:
        self.wide = wide
        self.down = down
        rising, falling, self.beta, self.eps = (
            weights.tensor(modules[f"xielu_{role}"], dtype=torch.float32)
            for role in ("rising", "falling", "beta", "eps")
        )
        self.rising, self.falling = F.softplus(rising), self.beta + F.softplus(falling)

    def __call__(self, x: Hidden, residual: Tensor | None = None) -> Tensor:
        """``[..., hidden]`` -> the same, with ``residual`` added."""
        y = self.wide(x)[0]
        wide = y.float()
        below = torch.expm1(torch.minimum(wide, self.eps)) - wide
        bent = torch.where(wide > 0, self.rising * wide * wide, self.falling * below)
        return self.down((bent + self.beta * wide).to(y.dtype), residual=residual)[0]
