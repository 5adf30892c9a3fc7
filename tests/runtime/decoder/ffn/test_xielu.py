"""The activation function xIELU against its formula in float64."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from int8conv.runtime.backends.parts import Hidden, tensor_of
from int8conv.runtime.decoder.ffn.xielu import XieluFeedForward


def same(x: Hidden, *, residual: Tensor | None = None) -> Sequence[Tensor]:
    return [tensor_of(x)]


def test_the_formula() -> None:
    numbers = {"xielu_rising": 0.3, "xielu_falling": -0.4, "xielu_beta": 0.5, "xielu_eps": -1e-6}
    weights: Any = SimpleNamespace(tensor=lambda value, dtype: torch.tensor(value, dtype=dtype))
    modules: Any = numbers
    x = torch.tensor([-30.0, -2.0, -1e-7, 0.0, 1e-3, 4.0])
    found = XieluFeedForward(modules, weights, same, same)(x)
    wide = x.double()
    rising = torch.tensor(0.3).double().exp().log1p()
    falling = 0.5 + torch.tensor(-0.4).double().exp().log1p()
    above = rising * wide**2 + 0.5 * wide
    below = falling * (torch.expm1(wide.clamp(max=-1e-6)) - wide) + 0.5 * wide
    assert (found - torch.where(wide > 0, above, below)).abs().max() < 1e-5
