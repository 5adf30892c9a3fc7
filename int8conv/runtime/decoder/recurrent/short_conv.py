"""LFM2's short convolution (arXiv:2511.23404, section 2.1): a depthwise causal convolution over a few tokens, gated on both sides.

    [b; c; x] = in(h);   y = out(c * conv(b * x))

Its state is the convolution's last inputs. Between its linears it runs in PyTorch, on a GPU too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ...backends.interface import Positions
from ...backends.parts import Hidden, Projection, tensor_of
from ...models.architecture import Module
from ...models.config import DecoderConfig
from ...models.recurrence import ShortConv
from ...weights.weights import Weights
from ..cache import Cache, state_of


class ShortConvolution:
    """A gated convolution in place of attention."""

    def __init__(
        self, config: DecoderConfig, modules: Mapping[str, Module], weights: Weights,
        projection: Callable[..., Projection], number: int,
    ) -> None:  # fmt: skip  # ``projection``: called with roles of linears that share an input
        """``number``: the layer's number among the cache's states."""
        assert isinstance(config.recurrence, ShortConv)
        self.config = config.recurrence
        self.number = number
        self.wide, self.out = projection("conv_in"), projection("conv_out")
        module, exact = modules["conv"], torch.float32
        self.conv = weights.tensor(module, dtype=exact)
        self.bias = weights.tensor(module, "bias", exact) if module.bias else None

    def __call__(
        self, x: Hidden, positions: Positions, cache: Cache | None, residual: Tensor | None
    ) -> Tensor:
        """``[b, t, hidden]`` -> the same, with ``residual`` added; updates the cache's state."""
        value = tensor_of(x)
        b, c, inner = self.wide(value)[0].float().chunk(3, dim=-1)
        state = state_of(cache, self.number, self.config, value)
        y = c * state.convolved(b * inner, self.conv, self.bias, activated=False)
        return self.out(y.to(value.dtype), residual=residual)[0]
