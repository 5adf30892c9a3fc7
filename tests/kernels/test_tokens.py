"""What becomes of activations before the product: outlier columns, large values, codes; at the edges of each."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from int8conv.kernels.tokens import (
    add_outliers,
    largest_of_tokens,
    quantize_tokens,
    take_large,
    without_outliers,
)
from int8conv.kernels.weight import FallbackCounter, MixedWeight

from .mixed_weights import make_weight


def test_outlier_columns_are_zero_in_a_copy() -> None:
    weight = make_weight(4, 32, k=16)
    assert weight.outlier_index is not None
    x = torch.ones(3, 32)
    found = without_outliers(x, weight)
    inside = weight.outlier_index.long()
    assert (found[:, inside] == 0).all()
    assert found.sum() == 3 * 16
    assert (x == 1).all()
    plain = without_outliers(x, make_weight(4, 32))
    plain.zero_()
    assert (x == 1).all()


def test_products_of_outlier_columns_are_added_onto_what_is_there() -> None:
    weight = make_weight(4, 32, k=16)
    assert weight.outlier_index is not None
    assert weight.outlier_weight is not None
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    y = torch.full((3, 4), 10.0)
    expected = 10 + x[:, weight.outlier_index.long()].double() @ weight.outlier_weight.double().t()
    assert add_outliers(y, x, weight) is y
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-5)
    y = torch.full((3, 4), 10.0)
    assert add_outliers(y, x, make_weight(4, 32)) is y
    assert (y == 10).all()


def large_at(weight: MixedWeight, x: Tensor) -> tuple[list[int], Tensor, Tensor]:
    """Rows and values that the fallback takes, and what it leaves."""
    left = x.clone()
    taken = take_large(left, weight)
    assert taken is not None
    assert ((taken.values == 0) | (left[taken.rows] == 0)).all()
    return taken.rows.tolist(), taken.values, left


def test_values_from_the_threshold_on_are_taken_of_either_sign() -> None:
    """The threshold itself is large, and the float below it is not."""
    weight = make_weight(4, 4, threshold=2.0)
    below = torch.nextafter(torch.tensor(2.0), torch.tensor(0.0))
    x = torch.tensor([[1, 2, -2, 0.5], [below, -below, 1, 0], [-9, 0, 0, 0]])
    rows, values, left = large_at(weight, x)
    assert rows == [0, 2]
    assert values.tolist() == [[0, 2, -2, 0], [-9, 0, 0, 0]]
    assert torch.equal(left[1], x[1])
    assert left[0].tolist() == [1, 0, 0, 0.5]
    assert left[2].tolist() == [0, 0, 0, 0]


def test_nothing_is_taken_without_a_threshold_or_below_it() -> None:
    x = torch.full((2, 4), 100.0)
    assert take_large(x, make_weight(4, 4)) is None
    assert take_large(x, make_weight(4, 4, threshold=100.5)) is None
    assert (x == 100).all()


def test_what_is_taken_is_counted() -> None:
    """All tokens, those with something taken, and values by channel; also where nothing is."""
    counter = FallbackCounter(4)
    weight = replace(make_weight(4, 4, threshold=2.0), counter=counter)
    take_large(torch.tensor([[1.0, 2, -2, 0], [0, 0, 0, 0], [0, 3, 0, 0]]), weight)
    take_large(torch.zeros(5, 4), weight)
    assert (counter.tokens, counter.fallback_tokens) == (8, 2)
    assert counter.fallback.tolist() == [0, 2, 1, 0]


def test_the_largest_magnitude_of_each_token() -> None:
    x = torch.tensor([[1.0, -3, 2], [0, 0, 0], [-0.5, 0.25, 0.5]])
    assert largest_of_tokens(x).tolist() == [[3], [0], [0.5]]


def test_codes_reach_127_and_stand_for_their_values() -> None:
    """Half a step of error at most; a token of zeros has the scale 0 and the codes 0."""
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(3)) * torch.tensor([1e-6, 1, 50, 1e4, 0, 3])[:, None]  # fmt: skip
    codes, scale = quantize_tokens(x)
    assert (codes.dtype, scale.shape) == (torch.int8, (6, 1))
    assert codes.abs().amax(dim=1).tolist() == [127, 127, 127, 127, 0, 127]
    assert scale[4] == 0
    error = (codes.double() * scale.double() - x.double()).abs()
    assert (error <= scale.double() * 0.5001).all()


@pytest.mark.parametrize("value", [1.0, -1.0])
def test_halves_round_to_even(value: float) -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, 126.5]]) * value
    codes, _ = quantize_tokens(x)
    assert codes.tolist() == [[127 * value, 0, 2 * value, 2 * value, 126 * value]]
