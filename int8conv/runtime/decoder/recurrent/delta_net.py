"""Gated DeltaNet (arXiv:2412.06464): linear attention whose state forgets, and is corrected rather than added to.

A depthwise causal convolution with SiLU over q, k and v comes first; q and k are then divided by their length, and q by
``sqrt(key_size)``. Per value head, with the state ``S [key_size, value_size]``, in float32:

    S <- exp(g) S;   u = beta (v - k S);   S <- S + k^T u;   y = q S
    g = -exp(A_log) softplus(a + dt_bias);   beta = sigmoid(b)

and the output is ``out(RMSNorm(y) * silu(z))``. ``linear_attention`` computes the rule, a prompt in chunks (section 3.3 there).
Between its linears it runs in PyTorch, on a GPU too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from ...backends.interface import Positions
from ...backends.parts import Hidden, Projection, tensor_of
from ...models.architecture import Module
from ...models.config import DecoderConfig
from ...models.recurrence import Delta
from ...weights.weights import Weights
from ..cache import Cache, state_of
from ..norms import NormWeights, normalised
from .linear_attention import attend_linearly

_SMALLEST: Final = 1e-6
"""Added to the squared length of queries and keys."""


class DeltaNet:
    """Gated DeltaNet in place of attention."""

    def __init__(
        self, config: DecoderConfig, modules: Mapping[str, Module], weights: Weights,
        projection: Callable[..., Projection], number: int,
    ) -> None:  # fmt: skip  # ``projection``: called with roles of linears that share an input
        """``number``: the layer's number among the cache's states."""
        assert isinstance(config.recurrence, Delta)
        self.config = config.recurrence
        self.number = number
        self.wide = projection("delta_qkvz", "delta_qkv", "delta_z")
        self.small = projection("delta_ba", "delta_b", "delta_a")
        self.out = projection("delta_out")
        exact = torch.float32
        self.conv = weights.tensor(modules["delta_conv"], dtype=exact)
        self.decay = -weights.tensor(modules["delta_a_log"], dtype=exact).exp()
        self.dt_bias = weights.tensor(modules["delta_dt_bias"], dtype=exact)
        norm = weights.tensor(modules["delta_norm"], dtype=exact)
        self.norm = NormWeights(True, config.norm_eps, norm, None)

    def __call__(
        self, x: Hidden, positions: Positions, cache: Cache | None, residual: Tensor | None
    ) -> Tensor:
        """``[b, t, hidden]`` -> the same, with ``residual`` added; updates the cache's state."""
        c, value = self.config, tensor_of(x)
        qkv, z, b, a = self._split(self.wide(value), self.small(value))
        state = state_of(cache, self.number, c, value)
        qkv = state.convolved(qkv.float(), self.conv)
        q, k, v = (
            part.unflatten(-1, (-1, size)).transpose(1, 2)  # type: ignore[no-untyped-call]
            for part, size in zip(
                qkv.split_with_sizes([c.keys, c.keys, c.values], dim=-1),
                (c.key_size, c.key_size, c.value_size),
                strict=True,
            )
        )
        each = c.value_heads // c.key_heads
        q, k = (_unit(part).repeat_interleave(each, dim=1) for part in (q, k))
        beta = b.float().sigmoid().transpose(1, 2)
        g = (self.decay * F.softplus(a.float() + self.dt_bias)).transpose(1, 2)
        y = attend_linearly(q * c.key_size**-0.5, k, v, g, beta, state.matrix)
        y = normalised(y.transpose(1, 2), self.norm) * F.silu(z.float())
        return self.out(y.flatten(-2).to(value.dtype), residual=residual)[0]

    def _split(
        self, wide: Sequence[Tensor], small: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k and v together ``[b, t, channels]``, z ``[b, t, value_heads, value_size]``, b and a ``[b, t, value_heads]``."""
        c = self.config
        shape = wide[0].shape[:-1]
        if len(wide) == 2:
            return wide[0], wide[1].view(*shape, c.value_heads, -1), small[0], small[1]
        each = c.value_heads // c.key_heads  # rows are grouped by key head
        sizes = [c.key_size, c.key_size, each * c.value_size, each * c.value_size]
        parts = wide[0].view(*shape, c.key_heads, -1).split_with_sizes(sizes, dim=-1)
        q, k, v, z = (part.flatten(-2) for part in parts)
        b, a = (part.flatten(-2) for part in small[0].view(*shape, c.key_heads, -1).chunk(2, -1))
        return torch.cat([q, k, v], -1), z.view(*shape, c.value_heads, -1), b, a


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + _SMALLEST)
