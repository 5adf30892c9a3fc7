"""Linears of one input: what each gives, with its bias, its part of the rows, and a residual."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from int8conv.kernels.dispatch import mixed_linear
from int8conv.runtime.backends.parts import DeferredTensor
from int8conv.runtime.weights import projections
from int8conv.runtime.weights.projections import (
    DenseProjection,
    MixedProjection,
    SplitProjection,
    by_head,
)

from ...kernels.mixed_weights import dense, make_weight

G = torch.Generator().manual_seed(0)
X = torch.randn(2, 3, 40, generator=G)
RESIDUAL = torch.randn(2, 3, 12, generator=G)
WEIGHT = make_weight(12, 40, 16)
BIAS = torch.randn(12, generator=G)


class Later(DeferredTensor):
    """Tells how often it was asked for."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.asked = 0

    def value(self) -> Tensor:
        self.asked += 1
        return self.x


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [None, BIAS])
def test_rows_of_an_int8_matrix_are_several_linears(bias: Tensor | None) -> None:
    truth = X.double() @ dense(WEIGHT).t() + (0 if bias is None else bias.double())
    found = MixedProjection(WEIGHT, bias, (7, 1, 4), "w8a16")(X)
    assert [y.shape[-1] for y in found] == [7, 1, 4]
    close(torch.cat(tuple(found), dim=-1), truth)
    (y,) = MixedProjection(WEIGHT, bias, [12], "w8a16")(X, residual=RESIDUAL)
    close(y, truth + RESIDUAL)


def test_the_mode_is_that_of_the_mixed_linear() -> None:
    modes: list[Literal["w8a8", "w8a16"] | None] = ["w8a8", "w8a16", None]
    for mode in modes:
        (y,) = MixedProjection(WEIGHT, BIAS, [12], mode)(X)
        assert torch.equal(y, mixed_linear(X, WEIGHT, BIAS, mode=mode))
    assert not torch.equal(mixed_linear(X, WEIGHT, mode="w8a8"), mixed_linear(X, WEIGHT, mode="w8a16"))  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_dense_linears_have_a_matrix_each(dtype: torch.dtype) -> None:
    first, second = (torch.randn(n, 40, generator=G).to(dtype) for n in (5, 12))
    found = DenseProjection([(first, None), (second, BIAS)])(X)
    assert len(found) == 2
    close(found[0], X.double() @ first.double().t())
    close(found[1], X.double() @ second.double().t() + BIAS.double())
    (y,) = DenseProjection([(second, BIAS)])(X, residual=RESIDUAL)
    close(y, X.double() @ second.double().t() + BIAS.double() + RESIDUAL)


def test_outputs_of_several_parts_in_the_order_of_the_linears() -> None:
    """``order``: for each linear, its number among the parts' outputs."""
    parts = [
        MixedProjection(WEIGHT, None, (7, 5), "w8a16"),
        DenseProjection([(torch.ones(1, 40), None)]),
    ]
    q, k = MixedProjection(WEIGHT, None, (7, 5), "w8a16")(X)
    found = SplitProjection(parts, (2, 0, 1))(X)
    assert len(found) == 3
    close(found[0], X.double().sum(-1, keepdim=True))
    assert torch.equal(found[1], q)
    assert torch.equal(found[2], k)
    with pytest.raises(AssertionError):
        SplitProjection(parts, (0,))(X, residual=RESIDUAL)


def test_an_activation_that_is_to_be_finished_is_finished_once() -> None:
    made: list[Any] = [
        MixedProjection(WEIGHT, None, [12], "w8a16"), DenseProjection([(torch.ones(1, 40), None)] * 2),
        SplitProjection([DenseProjection([(torch.ones(1, 40), None)])] * 2, (0, 1)),
    ]  # fmt: skip
    for projection in made:
        later = Later(X)
        found, expected = projection(later), projection(X)
        assert later.asked == 1
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_neither_input_nor_residual_is_changed() -> None:
    x, residual = X.clone(), RESIDUAL.clone()
    MixedProjection(replace(WEIGHT, threshold=1.0), BIAS, [12], "w8a8")(x, residual=residual)
    DenseProjection([(torch.ones(12, 40), BIAS)])(x, residual=residual)
    assert torch.equal(x, X)
    assert torch.equal(residual, RESIDUAL)


@pytest.mark.parametrize("at_once", [1, 1 << 18])
@pytest.mark.parametrize("columns", [0, 16])
def test_rows_of_heads(columns: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three heads of four rows each; of the first of each, or of the last three."""
    monkeypatch.setattr(projections, "FOLDED_AT_ONCE", at_once)
    weight = make_weight(12, 40, columns)
    truth = dense(weight).view(3, 4, 40)
    for part in (slice(0, 1), slice(1, None)):
        rows = truth[:, part]
        for made in (MixedProjection(weight, None, [12], None), DenseProjection([(truth.view(12, 40).float(), None)])):  # fmt: skip
            x = torch.randn(2, 3, 5, 40, generator=G)
            close(by_head(made, x, part, turned=False), torch.einsum("bhti,hri->bhtr", x.double(), rows))  # fmt: skip
            x = torch.randn(2, 3, 5, rows.shape[1], generator=G)
            close(by_head(made, x, part, turned=True), torch.einsum("bhtr,hri->bhti", x.double(), rows))  # fmt: skip
