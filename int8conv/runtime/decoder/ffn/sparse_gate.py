"""A gated FFN most of whose gate is zero (Gemma 3n): of each token's values, those above a quantile of a normal distribution remain.

    g = gate(x);   g <- max(0, g - mean(g) - std(g) * quantile(fraction));   y = down(act(g) * up(x))

Computed in full all the same: what is zero is not skipped. Runs in PyTorch.
"""

from __future__ import annotations

from statistics import NormalDist

import torch
import torch.nn.functional as F
from torch import Tensor

from ...backends.parts import Hidden, Projection
from ...backends.torch_backend import ACTIVATIONS
from ...models.config import Activation


class SparselyGated:
    """Such an FFN; no backend fuses it."""

    parts = None

    def __init__(self, wide: Projection, down: Projection, activation: Activation, fraction: float) -> None:  # fmt: skip
        self.wide = wide
        self.down = down
        self.activation = ACTIVATIONS[activation]
        self.quantile = NormalDist().inv_cdf(fraction)

    def __call__(self, x: Hidden, residual: Tensor | None = None) -> Tensor:
        """``[..., hidden]`` -> the same, with ``residual`` added."""
        gate, up = self.wide(x)
        std, mean = torch.std_mean(gate, dim=-1, keepdim=True, correction=0)
        inner = self.activation(F.relu(gate - (mean + std * self.quantile))) * up
        return self.down(inner, residual=residual)[0]
