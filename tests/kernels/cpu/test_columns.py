"""The two modes around products that are given: what each product is asked for, and what is made of its results."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from int8conv.kernels import reference
from int8conv.kernels.cpu import columns
from int8conv.kernels.crossovers import GATHERED_CHANNELS
from int8conv.kernels.tokens import rounded_in_blocks
from int8conv.kernels.weight import FallbackCounter

from ..mixed_weights import check, dense, make_weight

X = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))


class Products:
    """In float64, each told with its activations."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Tensor]] = []

    def __getattr__(self, name: str) -> Any:
        def product(x: Tensor, codes: Tensor) -> Tensor:
            assert codes.dtype == torch.int8
            self.asked.append((name, x.clone()))
            if name == "int8":
                x = rounded_in_blocks(x, max(x.shape[1], 1))
            return (x.double() @ codes.double().t()).float()

        return product

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.asked]


def w8a8(x: Tensor, weight: Any) -> tuple[Tensor, Products]:
    products = Products()
    return columns.w8a8(x, weight, int8=products.int8, int16=products.int16, exact=products.exact), products  # fmt: skip


@pytest.mark.parametrize("k", [0, 16])
def test_w8a16_asks_for_one_exact_product_outside_the_columns(k: int) -> None:
    weight, products = make_weight(12, 64, k), Products()
    y = columns.w8a16(X, weight, exact=products.exact)
    check(y, X.double() @ dense(weight).t(), X, weight)
    ((name, x),) = products.asked
    assert name == "exact"
    inside = [] if weight.outlier_index is None else weight.outlier_index.tolist()
    assert (x == 0).all(dim=0).nonzero().flatten().tolist() == inside


@pytest.mark.parametrize("k", [0, 16])
def test_w8a8_asks_for_one_int8_product_outside_the_columns(k: int) -> None:
    weight = make_weight(12, 64, k)
    y, products = w8a8(X, weight)
    ((name, x),) = products.asked
    inside = [] if weight.outlier_index is None else weight.outlier_index.tolist()
    assert (name, (x == 0).all(dim=0).nonzero().flatten().tolist()) == ("int8", inside)
    torch.testing.assert_close(y, reference.w8a8(X, weight), rtol=1e-5, atol=1e-5)


def test_an_input_of_16_bits_has_a_product_of_its_own_and_no_fallback() -> None:
    weight = make_weight(12, 64, 16, threshold=0.5, activation_bits=16)
    counter = FallbackCounter(64)
    y, products = w8a8(X, replace(weight, counter=counter))
    assert products.names == ["int16"]
    check(y, X.double() @ dense(weight).t(), X, weight)
    assert counter.tokens == 0


@pytest.mark.parametrize(
    ("channels", "gathered"),
    [(1, True), (64 // GATHERED_CHANNELS, True), (64 // GATHERED_CHANNELS + 1, False), (40, False)],
)
@pytest.mark.parametrize("bits", [8])
def test_large_values_are_multiplied_with_few_columns_or_all(
    channels: int, gathered: bool, bits: Literal[8]
) -> None:
    """In two of the tokens; the other tokens are as without them."""
    weight = make_weight(12, 64, 16, threshold=10.0, activation_bits=bits)
    assert weight.outlier_index is not None
    free = [c for c in range(64) if c not in weight.outlier_index.tolist()][:channels]
    x = X.clone()
    x[1, free] = 20.0
    x[4, free[0]] = -30.0
    y, products = w8a8(x, weight)
    assert products.names == (["int8"] if gathered else ["int8", "exact"])
    asked = products.asked[0][1]
    assert (asked[1, free] == 0).all()
    assert (
        asked[4].abs().max()
        == X[4].index_fill(0, weight.outlier_index.long(), 0)[x[4].abs() < 10].abs().max()
    )
    torch.testing.assert_close(y, reference.w8a8(x, weight), rtol=1e-5, atol=1e-4)
    plain, _ = w8a8(X, weight)
    assert torch.equal(y[[0, 2, 3]], plain[[0, 2, 3]])


def test_the_input_is_not_changed_and_nothing_comes_of_nothing() -> None:
    weight, x = make_weight(12, 64, 16, threshold=1.0), X.clone()
    w8a8(x, weight)
    columns.w8a16(x, weight, exact=Products().exact)
    assert torch.equal(x, X)
    y, _ = w8a8(torch.zeros(2, 64), weight)
    assert (y == 0).all()
    assert w8a8(torch.empty(0, 64), make_weight(12, 64))[0].shape == (0, 12)
