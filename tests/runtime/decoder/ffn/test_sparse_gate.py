"""A gate that is mostly zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from int8conv.runtime.backends.parts import Hidden, tensor_of
from int8conv.runtime.decoder.ffn.sparse_gate import SparselyGated


def both(x: Hidden, *, residual: Tensor | None = None) -> Sequence[Tensor]:
    return tensor_of(x), torch.ones_like(tensor_of(x))


def same(x: Hidden, *, residual: Tensor | None = None) -> Sequence[Tensor]:
    return [tensor_of(x) if residual is None else tensor_of(x) + residual]


def test_that_fraction_of_normal_values_is_zero() -> None:
    x = 3 + 2 * torch.randn(2, 100_000, generator=torch.Generator().manual_seed(0))
    y = SparselyGated(both, same, "relu", 0.9)(x)
    assert abs(float((y == 0).float().mean()) - 0.9) < 0.01
    threshold = 3 + 2 * 1.2816  # the standard normal distribution's quantile
    assert (y - (x - threshold).clamp(min=0)).abs().max() < 0.03


def test_a_residual_is_added() -> None:
    x = torch.ones(1, 4)
    assert torch.equal(SparselyGated(both, same, "silu", 0.5)(x, x), x)
