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


def biased(projection: Any, seed: int) -> QuantizedProjection:
    g = torch.Generator().manual_seed(seed)
    bias = torch.randn(projection.weight.out_features, generator=g).half()
    return QuantizedProjection(projection.weight, bias, projection.sizes, None)


def form(name: str, seed: int) -> FeedForwardParts:
    """An expert of some form: an activation of a gated FFN, limits, biases, or no gate."""
    if name in ("silu", "gelu_tanh"):
        return expert(seed, activation=name)
    plain = expert(seed)
    if name == "no gate":
        down = QuantizedProjection(
            make_weight(HIDDEN, 2 * INNER, seed=seed + 10), None, [HIDDEN], None
        )
        return replace(plain, activation="relu2", gated=False, down=down)
    limits = (1.702, 1.5) if name == "limits" else None
    return replace(
        plain, wide=biased(plain.wide, seed), down=biased(plain.down, seed + 5), clamped=limits
    )


def inner_of(name: str, y: Tensor) -> Tensor:
    """The formula between the linears."""
    if name == "no gate":
        return F.relu(y).square()
    if name == "limits":
        gate, up = y[::2].clamp(max=1.5), y[1::2].clamp(-1.5, 1.5)
        return (up + 1) * gate * torch.sigmoid(1.702 * gate)
    gate, up = y.chunk(2)
    return (F.gelu(gate, approximate="tanh") if name == "gelu_tanh" else F.silu(gate)) * up


def product(projection: Any, x: Tensor) -> Tensor:
    y = weight(projection) @ x
    return y if projection.bias is None else y + projection.bias.double()


@pytest.mark.parametrize("name", ["silu", "gelu_tanh", "biases", "limits", "no gate"])
def test_a_token_is_the_weighted_sum_of_its_experts(name: str) -> None:
    experts = [form(name, i) for i in range(COUNT)]
    fused = FewTokens.of(experts)
    assert fused is not None
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, HIDDEN, generator=g).half()
    chosen, shares = torch.tensor([[2, 0], [1, 1]]), torch.tensor([[0.75, 0.25], [0.5, 2.0]])
    found = fused(x, chosen, shares)
    expected = torch.zeros(2, HIDDEN, dtype=torch.float64)
    for i in range(2):
        for e, share in zip(chosen[i].tolist(), shares[i].tolist(), strict=True):
            inner = inner_of(name, product(experts[e].wide, x[i].double()))
            expected[i] += share * product(experts[e].down, inner)
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
        {"gated": False},  # unlike the first
        {"activation": "gelu"},
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
