"""Compensated rounding against its definition in float64, and at its edges."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from int8conv.convert.rounding.compensate import Compensation, Gram, damping_for
from int8conv.formats.int8.names import MOST_STEPS
from int8conv.kernels.cpu import jit

WIDTH, ROWS = 150, 40  # more than two blocks of columns
DAMPING = 0.05
FREE = 254


def inputs(tokens: int, seed: int = 0) -> Tensor:
    """Correlated channels of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(tokens, WIDTH // 3, generator=generator)
    mixed = mixed @ torch.randn(WIDTH // 3, WIDTH, generator=generator)
    noise = torch.randn(tokens, WIDTH, generator=generator)
    return (mixed / 8 + noise) * torch.logspace(-1, 1, WIDTH)[
        torch.randperm(WIDTH, generator=generator)
    ]


def weights(seed: int = 1) -> tuple[Tensor, Tensor]:
    weight = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed)) * 0.1
    return weight, weight.abs().amax(1) / 127


def by_definition(
    h: Tensor, weight: Tensor, scale: Tensor, columns: list[int], most: int
) -> Tensor:
    """GPTQ as published: column after column, the inverse of what is left of ``H`` tells the others how to make up for it."""
    h = h.double()
    inner = [c for c in range(WIDTH) if c not in columns]
    order = sorted(inner, key=lambda c: -float(h[c, c]))
    h = h[order][:, order]
    h = h + DAMPING * h.diagonal().mean() * torch.eye(len(h))
    w = weight.double()[:, order] / scale.double()[:, None]
    nearest, codes = w.round(), torch.zeros_like(w)
    for j in range(len(order)):
        inverse = torch.linalg.inv(h[j:, j:])
        limits = nearest[:, j] - most, nearest[:, j] + most
        codes[:, j] = w[:, j].round().clamp(*limits).clamp(-127, 127)
        error = (w[:, j] - codes[:, j]) / inverse[0, 0]
        w[:, j:] -= error[:, None] * inverse[0]
    whole = torch.zeros(ROWS, WIDTH)
    whole[:, order] = codes.float()
    return whole


def error(h: Tensor, weight: Tensor, scale: Tensor, codes: Tensor, columns: list[int]) -> float:
    """Squared error of the output, with exact outlier columns."""
    lost = weight.double() - codes.double() * scale.double()[:, None]
    lost[:, columns] = 0
    return float(((lost @ h.double()) * lost).sum())


@pytest.mark.parametrize("numba", [True, False])
@pytest.mark.parametrize("columns", [[], [3, 77, 149]], ids=["none", "outliers"])
@pytest.mark.parametrize("most", [1, MOST_STEPS, FREE])
def test_the_codes_are_those_of_gptq(
    columns: list[int], most: int, numba: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if numba and not jit.available():
        pytest.skip("needs numba")
    monkeypatch.setattr(jit, "available", lambda: numba)
    gram = Gram()
    gram.add(inputs(400))
    h = gram.matrix()
    weight, scale = weights()
    codes = Compensation(h.clone(), torch.tensor(columns, dtype=torch.long), DAMPING).codes(
        weight, scale, most
    )
    expected = by_definition(h, weight, scale, columns, most)
    assert (
        codes != expected
    ).float().mean() < 0.005  # float32 decides a near tie otherwise now and then
    assert not codes[:, columns].any()
    nearest = (weight / scale[:, None]).round()
    nearest[:, columns] = 0
    assert (codes - nearest).abs().max() <= most
    assert codes.abs().max() <= 127
    if most >= MOST_STEPS:
        better = error(h, weight, scale, codes, columns)
        assert better < 0.7 * error(h, weight, scale, nearest, columns)


def test_uncorrelated_inputs_give_nearest_codes() -> None:
    weight, scale = weights()
    scale[3] = 0
    weight[3] = 0
    nearest = (weight / torch.where(scale > 0, scale, 1.0)[:, None]).round()
    for h in (torch.zeros(WIDTH, WIDTH), torch.diag(torch.logspace(-3, 3, WIDTH))):
        codes = Compensation(h, torch.empty(0, dtype=torch.long), DAMPING).codes(weight, scale)
        assert codes.dtype == torch.int8
        assert torch.equal(codes.float(), nearest)


def test_any_split_of_the_tokens_gives_the_same_sums() -> None:
    """Few tokens are kept as they are, more become a sum; dead and repeated channels are damped enough."""
    x = inputs(400)
    x[:, 5] = 0
    x[:, 9] = x[:, 8]
    exact = x.double().t() @ x.double()
    for sizes in ([400], [100, 60, 240], [20] * 20):
        gram = Gram()
        for part in x.split(sizes):
            gram.add(part)
        assert gram.tokens == 400
        torch.testing.assert_close(gram.matrix().double(), exact, rtol=1e-4, atol=1e-2)
    weight, scale = weights()
    codes = Compensation(gram.matrix(), torch.tensor([0]), DAMPING).codes(weight, scale)
    assert (codes - (weight / scale[:, None]).round())[:, 1:].abs().max() <= MOST_STEPS
    few = Gram()
    few.add(x[:10])
    once = few.matrix()
    assert torch.equal(once, few.matrix())
    assert torch.isfinite(
        Compensation(once, torch.tensor([0]), DAMPING).codes(weight, scale).float()
    ).all()


def test_sums_beyond_float32_are_left_alone() -> None:
    h = torch.full((WIDTH, WIDTH), float("inf"))
    weight, scale = weights()
    codes = Compensation(h, torch.empty(0, dtype=torch.long), DAMPING).codes(weight, scale)
    assert torch.equal(codes.float(), (weight / scale[:, None]).round())


def test_fewer_tokens_are_damped_more() -> None:
    assert damping_for(1000, 1000) == pytest.approx(0.5)
    assert damping_for(1000, 500) == pytest.approx(1.0)
    assert damping_for(1000, 10**6) == pytest.approx(0.01)
    assert damping_for(1000, 0) == pytest.approx(500)
