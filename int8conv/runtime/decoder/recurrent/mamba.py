"""Mamba 2 (arXiv:2405.21060): a state space whose decay is one number per head, step and token.

One linear gives z, x, B, C and the step; a depthwise causal convolution with SiLU over x, B and C comes next. Heads of a group share B
and C. Per head, with the state ``S [state_size, head_size]``, in float32:

    dt = clamp(softplus(step + dt_bias));   S <- exp(-exp(A_log) dt) S + B^T (dt x);   y = C S + D x

and the output is ``out(norm(y * silu(z)))``, with an RMSNorm per group of heads, ``out(norm(y) * silu(z))``, or without the norm.
This is linear attention with keys B, queries C and values dt x (section 3 there; ``linear_attention``). Falcon-H1 multiplies the
outputs of the first linear by five constants (arXiv:2507.22448, section 3.2). Between its linears it runs in PyTorch, on a GPU too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ...backends.interface import Positions
from ...backends.parts import Hidden, Projection, tensor_of
from ...models.architecture import Module
from ...models.config import DecoderConfig
from ...models.recurrence import Mamba
from ...weights.weights import Weights
from ..cache import Cache, state_of
from ..norms import NormWeights, normalised
from .linear_attention import attend_linearly


class Mamba2:
    """Mamba 2 in place of attention, or beside it."""

    def __init__(
        self, config: DecoderConfig, modules: Mapping[str, Module], weights: Weights,
        projection: Callable[..., Projection], number: int,
    ) -> None:  # fmt: skip  # ``projection``: called with roles of linears that share an input
        """``number``: the layer's number among the cache's states."""
        assert isinstance(config.recurrence, Mamba)
        self.config = c = config.recurrence
        self.number = number
        self.wide, self.out = projection("ssm_in"), projection("ssm_out")

        def exact(role: str, kind: str = "weight") -> Tensor:
            return weights.tensor(modules[role], kind, torch.float32)

        self.conv = exact("ssm_conv")
        self.conv_bias = exact("ssm_conv", "bias") if c.conv_bias else None
        self.decay, self.through = -exact("ssm_a_log").exp(), exact("ssm_d")
        self.dt_bias = exact("ssm_dt_bias")
        self.norm = None
        if c.norm is not None:
            weight = exact("ssm_norm").view(c.groups, -1)
            self.norm = NormWeights(True, config.norm_eps, weight, None)
        self.scales = None
        if c.scales != (1.0,) * 5:
            sizes = torch.tensor([c.values, c.values, c.keys, c.keys, c.value_heads])
            self.scales = torch.tensor(c.scales).repeat_interleave(sizes).to(self.decay.device)

    def __call__(
        self, x: Hidden, positions: Positions, cache: Cache | None, residual: Tensor | None
    ) -> Tensor:
        """``[b, t, hidden]`` -> the same, with ``residual`` added; updates the cache's state."""
        c, value = self.config, tensor_of(x)
        wide = self.wide(value)[0].float()
        wide = wide if self.scales is None else wide * self.scales
        z, inner, step = wide.split_with_sizes([c.values, c.channels, c.value_heads], dim=-1)
        state = state_of(cache, self.number, c, value)
        inner = state.convolved(inner, self.conv, self.conv_bias)
        inner, b, q = inner.split_with_sizes([c.values, c.keys, c.keys], dim=-1)
        inner = inner.unflatten(-1, (c.value_heads, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]
        dt = F.softplus(step + self.dt_bias).clamp(*c.step_limits).transpose(1, 2)
        y = attend_linearly(
            self._by_head(q), self._by_head(b), inner * dt[..., None], dt * self.decay[:, None], None, state.matrix
        )  # fmt: skip
        y = (y + inner * self.through[:, None, None]).transpose(1, 2).flatten(-2)
        return self.out(self._gated(y, F.silu(z)).to(value.dtype), residual=residual)[0]

    def _by_head(self, x: Tensor) -> Tensor:
        """B or C: ``[b, t, groups * state_size]`` -> ``[b, heads, t, state_size]``."""
        c = self.config
        grouped: Tensor = x.unflatten(-1, (c.groups, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]
        return grouped.repeat_interleave(c.value_heads // c.groups, dim=1)

    def _gated(self, y: Tensor, gate: Tensor) -> Tensor:
        """Gate and norm, ``[b, t, values]``."""
        if self.norm is None:
            return y * gate
        first = self.config.norm == "gate first"
        y = (y * gate if first else y).unflatten(-1, (self.config.groups, -1))  # type: ignore[no-untyped-call]
        y = normalised(y, self.norm).flatten(-2)
        return y if first else y * gate
