"""Experts as one call, in the interpreter: which are taken, and the weighted sum, against float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from int8conv.runtime.backends.gpu.experts import FewTokens
from int8conv.runtime.backends.gpu.projections import DenseProjection, QuantizedProjection
from int8conv.runtime.backends.parts import FeedForwardParts

from ....kernels.gpu.tensors import dense, make_weight

pytestmark = pytest.mark.usefixtures("few_programs")

HIDDEN, INNER, COUNT = 32, 16, 3


def expert(seed: int, **changes: Any) -> FeedForwardParts:
    wide = make_weight(2 * INNER, HIDDEN, 16, seed=seed)
    down = make_weight(HIDDEN, INNER, seed=seed + 10)
    values = {
        "wide": QuantizedProjection(wide, None, [INNER, INNER], None), "down": QuantizedProjection(down, None, [HIDDEN], "w8a16"),
        "activation": "silu", "gated": True,
    }  # fmt: skip
    return FeedForwardParts(**values | changes)  # type: ignore[arg-type]


def weight(projection: Any) -> Tensor:
    return dense(projection.weight)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_a_token_is_the_weighted_sum_of_its_experts(activation: str) -> None:
    experts = [expert(i, activation=activation) for i in range(COUNT)]
    fused = FewTokens.of(experts)
    assert fused is not None
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, HIDDEN, generator=g).half()
    chosen, shares = torch.tensor([[2, 0], [1, 1]]), torch.tensor([[0.75, 0.25], [0.5, 2.0]])
    found = fused(x, chosen, shares)
    formula = F.silu if activation == "silu" else lambda y: F.gelu(y, approximate="tanh")
    expected = torch.zeros(2, HIDDEN, dtype=torch.float64)
    for i in range(2):
        for e, share in zip(chosen[i].tolist(), shares[i].tolist(), strict=True):
            gate, up = (weight(experts[e].wide) @ x[i].double()).chunk(2)
            expected[i] += share * (weight(experts[e].down) @ (formula(gate) * up))
    assert found.dtype == torch.float16
    assert (found.double() - expected).abs().max() <= 3e-3 * expected.abs().max()


def moved(projection: Any) -> QuantizedProjection:
    """Its codes at an odd address, as in a foreign file."""
    codes = projection.weight.codes
    odd = torch.cat([codes.flatten()[:1], codes.flatten()])[1:].view(codes.shape)
    return QuantizedProjection(replace(projection.weight, codes=odd), None, [1], None)


def test_what_is_not_taken() -> None:
    plain = expert(0)
    assert isinstance(plain.wide, QuantizedProjection)
    assert isinstance(plain.down, QuantizedProjection)
    wide, down = plain.wide.weight, plain.down.weight
    others: list[dict[str, Any]] = [
        {"gated": False},
        {"wide": QuantizedProjection(wide, torch.zeros(2 * INNER), [1], None)},
        {"down": QuantizedProjection(down, torch.zeros(HIDDEN), [1], None)},
        {"wide": QuantizedProjection(wide, None, [1], "w8a8")},
        {"down": QuantizedProjection(down, None, [1], "w8a8")},
        {"wide": DenseProjection([(torch.zeros(2 * INNER, HIDDEN).half(), None)])},
        {"down": DenseProjection([(torch.zeros(HIDDEN, INNER).half(), None)])},
        {"wide": moved(plain.wide)},
    ]
    for changes in others:
        assert FewTokens.of([plain, expert(1, **changes)]) is None, changes
    assert FewTokens.of([plain, expert(1)]) is not None
