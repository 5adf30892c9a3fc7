"""A mixture of experts against the sum that it stands for, expert by expert and token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from int8conv.runtime.decoder.ffn.mixture import MixtureOfExperts
from int8conv.runtime.models.config import Experts

HIDDEN, COUNT = 6, 5
G = torch.Generator().manual_seed(4)
ROUTER = torch.randn(COUNT, HIDDEN, generator=G)
GATE = torch.randn(1, HIDDEN, generator=G)
X = torch.randn(2, 3, HIDDEN, generator=G)


class Expert:
    """Multiplies, and tells how many tokens it was given."""

    parts: Any = object()

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.seen: list[int] = []

    def __call__(self, x: Any) -> Tensor:
        self.seen.append(len(x))
        return torch.as_tensor(x * self.factor)


class Backend:
    """That passes tokens through experts as one call, or does not."""

    def __init__(self, fused: Any = None) -> None:
        self.fused = fused

    def fuse_experts(self, parts: Sequence[Any]) -> Any:
        return self.fused


def projection(weight: Tensor) -> Any:
    return lambda x: [x @ weight.t()]


def mixture(experts: list[Expert], used: int = 2, normalised: bool = True, fused: Any = None, shared: Expert | None = None) -> MixtureOfExperts:  # fmt: skip
    config = Experts(COUNT, used, 4, normalised)
    gate = projection(GATE) if shared else None
    return MixtureOfExperts(config, projection(ROUTER), experts, shared, gate, Backend(fused))  # type: ignore[arg-type]


def expected(used: int, normalised: bool, shared: float = 0.0) -> Tensor:
    y = torch.zeros_like(X, dtype=torch.float64)
    for i in range(2):
        for j in range(3):
            x = X[i, j].double()
            shares = torch.softmax(ROUTER.double() @ x, 0)
            best = shares.argsort(descending=True)[:used].tolist()
            total = sum(float(shares[e]) for e in best) if normalised else 1.0
            y[i, j] = sum(float(shares[e]) / total * (e + 1) for e in best) * x
            y[i, j] += torch.sigmoid(GATE.double() @ x) * shared * x
    return y


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("used", [1, 2, COUNT])
def test_each_token_is_a_weighed_sum_of_its_best_experts(used: int, normalised: bool) -> None:
    experts = [Expert(e + 1.0) for e in range(COUNT)]
    y = mixture(experts, used, normalised)(X)
    torch.testing.assert_close(y.double(), expected(used, normalised), rtol=1e-5, atol=1e-5)
    assert sum(sum(expert.seen) for expert in experts) == 6 * used


def test_an_expert_that_no_token_needs_is_not_called() -> None:
    experts = [Expert(e + 1.0) for e in range(COUNT)]
    mixture(experts, used=1)(X[:, :1])
    called = [len(expert.seen) for expert in experts]
    assert set(called) == {0, 1}
    assert sum(called) <= 2


def test_the_shared_expert_has_a_gate_of_its_own() -> None:
    shared = Expert(7.0)
    y = mixture([Expert(e + 1.0) for e in range(COUNT)], shared=shared)(X)
    torch.testing.assert_close(y.double(), expected(2, True, shared=7.0), rtol=1e-5, atol=1e-5)
    assert shared.seen == [6]


def test_the_residual_is_added() -> None:
    experts = [Expert(e + 1.0) for e in range(COUNT)]
    y = mixture(experts)(X, residual=torch.full_like(X, 10.0))
    torch.testing.assert_close(y.double(), 10 + expected(2, True), rtol=1e-5, atol=1e-5)


def test_one_token_per_sequence_may_pass_as_one_call_and_more_may_not() -> None:
    calls: list[tuple[tuple[int, ...], ...]] = []

    def fused(rows: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        calls.append((tuple(rows.shape), tuple(chosen.shape)))
        assert shares.sum(dim=-1).allclose(torch.ones(len(rows)))
        return rows * 100

    experts = [Expert(e + 1.0) for e in range(COUNT)]
    made = mixture(experts, fused=fused)
    assert not made.needs_host_sync
    assert mixture(experts).needs_host_sync
    assert torch.equal(made(X[:, :1]), X[:, :1] * 100)
    assert calls == [((2, HIDDEN), (2, 2))]
    torch.testing.assert_close(made(X).double(), expected(2, True), rtol=1e-5, atol=1e-5)
    assert len(calls) == 1
