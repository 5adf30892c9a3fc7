"""Products of 16-bit integers against float64: blocks, panels and tokens of every remainder, and numbers at the extremes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from int8conv.kernels.cpu import int16, jit

from ..mixed_weights import TOLERANCE, dense, make_weight

pytestmark = pytest.mark.skipif(not jit.multiplies_int16(), reason="needs numba and AVX2")


def activations(tokens: int, in_features: int) -> Tensor:
    return torch.randn(tokens, in_features, generator=torch.Generator().manual_seed(1))


def steps(x: Tensor) -> Tensor:
    """Float64, the step of each activation: blocks of one size, at most 512, a multiple of 16."""
    width = x.shape[1]
    size = -(-width // -(-width // 512) // 16) * 16
    blocks = [part.abs().amax(1, keepdim=True).expand_as(part) for part in x.double().split(size, 1)]  # fmt: skip
    return torch.cat(blocks, 1) / 32767


def check(y: Tensor, x: Tensor, weight: Tensor) -> None:
    """Within half a step for each activation, and what float32 adds."""
    bound = steps(x) / 2 @ weight.abs().t() * 1.001
    magnitude = x.double().abs() @ weight.abs().t()
    assert ((y.double() - x.double() @ weight.t()).abs() <= bound + TOLERANCE * magnitude + 1e-30).all()  # fmt: skip


@pytest.mark.parametrize("tokens", [1, 2, 5])
@pytest.mark.parametrize("out", [1, 4, 15, 16, 35])
@pytest.mark.parametrize("in_features", [1, 16, 33, 511, 512, 513, 1040])
def test_products(tokens: int, out: int, in_features: int) -> None:
    x, codes = activations(tokens, in_features), make_weight(out, in_features).codes
    check(jit.int16(x, codes), x, codes.double())


def test_the_largest_sums_are_exact() -> None:
    """512 products of the largest numbers, of either sign: just below 2^31."""
    codes = torch.full((2, 512), 127, dtype=torch.int8)
    codes[1] = -127
    found = jit.int16(torch.full((2, 512), 32767.0), codes)
    assert found.tolist() == [[512 * 127 * 32767.0, -512 * 127 * 32767.0]] * 2


def test_a_block_s_largest_value_is_no_other_block_s() -> None:
    x = activations(3, 1024)
    x[:, 600] = 1e5
    codes = make_weight(8, 1024).codes
    codes[:, 512:] = 0
    check(jit.int16(x, codes)[:, 2:], x[:, :512], codes[2:, :512].double())


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-38, -3.5, 65504.0, 1e30])
def test_constant_tokens(value: float) -> None:
    x = torch.full((3, 40), value)
    x[1] = 0.0
    codes = make_weight(9, 40).codes
    y = jit.int16(x, codes)
    check(y, x, codes.double())
    assert (y[1] == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows_in_its_token_alone(bad: float) -> None:
    x, codes = activations(4, 64), make_weight(9, 64).codes
    expected = jit.int16(x, codes)
    x[1, 5] = bad
    found = jit.int16(x, codes)
    assert not found[1].isfinite().any()
    assert torch.equal(found[[0, 2, 3]], expected[[0, 2, 3]])


def test_views_and_nothing() -> None:
    codes = make_weight(9, 64).codes
    x = activations(3, 128)
    assert torch.equal(jit.int16(x[:, ::2], codes), jit.int16(x[:, ::2].contiguous(), codes))
    assert jit.int16(x[:0, :64], codes).shape == (0, 9)
    assert (jit.int16(x[:, :0], codes[:, :0]) == torch.zeros(3, 9)).all()


@pytest.mark.parametrize("k", [0, 16])
def test_outlier_columns_are_exact_and_set_no_scale(k: int) -> None:
    weight, x = make_weight(12, 64, k, threshold=1.0), activations(20, 64)
    inner = x.clone()
    if weight.outlier_index is not None:
        x[:, weight.outlier_index.long()] *= 1000
        inner[:, weight.outlier_index.long()] = 0
    full = dense(weight)
    bound = steps(inner) / 2 @ full.abs().t() * 1.001
    magnitude = x.double().abs() @ full.abs().t()
    error = (int16.linear(x, weight).double() - x.double() @ full.t()).abs()
    assert (error <= bound + TOLERANCE * magnitude).all()


def test_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = make_weight(8, 64)
    assert int16.available(weight)
    turned = type(weight)(weight.codes.t().contiguous().t(), weight.scale)
    assert not int16.available(turned)
    monkeypatch.setattr(jit, "multiplies_int16", lambda: False)
    assert not int16.available(weight)
