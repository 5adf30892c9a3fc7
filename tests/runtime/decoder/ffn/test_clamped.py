"""The limits of the FFN, on numbers beyond and within them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from int8conv.runtime.decoder.ffn.clamped import ClampedFeedForward, clamped_swiglu


def test_gate_is_limited_above_and_up_on_both_sides() -> None:
    y = torch.tensor([[9.0, 1.0, -9.0, 5.0, 1.0, -5.0, 0.0, 3.0]])  # gate, up, gate, up, ...

    def expected(gate: float, up: float) -> float:
        return (up + 1) * gate / (1 + math.exp(-1.5 * gate))

    pairs = [(2.0, 1.0), (-9.0, 2.0), (1.0, -2.0), (0.0, 2.0)]
    truth = torch.tensor([[expected(*pair) for pair in pairs]])
    torch.testing.assert_close(clamped_swiglu(y, alpha=1.5, limit=2.0), truth)


def test_it_adds_what_is_given() -> None:
    def wide(x: Tensor, *, residual: Tensor | None = None) -> list[Tensor]:
        return [x]

    def down(x: Tensor, *, residual: Tensor | None = None) -> list[Tensor]:
        return [x if residual is None else residual + x]

    ffn = ClampedFeedForward(wide, down, 1.702, 7.0)  # type: ignore[arg-type]
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    residual = torch.ones(3, 4)
    torch.testing.assert_close(ffn(x, residual), ffn(x) + residual)
