"""Integer products: exact digits, and the precision that each number of them stands for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from int8conv.kernels import reference
from int8conv.kernels.cpu import integer

from ..mixed_weights import check, dense, make_weight

G = torch.Generator().manual_seed(2)
CODES = torch.randint(-127, 128, (9, 40), dtype=torch.int8, generator=G)
SPREAD = torch.randn(6, 40, generator=G) * torch.tensor([1e-6, 1.0, 50.0, 3e4, 0.0, 1e-30])[:, None]


def units(x: Tensor, count: int) -> Tensor:
    """``x`` rounded to whole steps of its token, float64 ``[tokens, in]``, and the step."""
    largest = x.abs().amax(dim=1, keepdim=True)
    step = largest / (127 * 256 ** (count - 1))
    return (x / step.masked_fill(step == 0, 1.0)).round().double() * step.double()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_products_are_those_of_the_rounded_values(count: int) -> None:
    """Digits of either sign, ties, and a token's largest magnitude; a token of zeros gives zeros."""
    x = SPREAD.clone()
    x[1, :4] = torch.tensor([60.0, -60.0, 30.0, 59.999])
    found = integer._by_digits(x, CODES, count)
    rounded = units(x, count)
    expected = rounded @ CODES.double().t()
    magnitude = rounded.abs() @ CODES.double().abs().t()
    assert ((found.double() - expected).abs() <= 2e-6 * magnitude + 1e-45).all()
    assert (found[4] == 0).all()


@pytest.mark.parametrize(("count", "bits"), [(2, 15), (3, 23)])
def test_the_step_is_as_fine_as_promised(count: int, bits: int) -> None:
    """Half of it is the largest error, beside float32's own rounding of the result."""
    eye = torch.eye(40, dtype=torch.int8)
    error = (integer._by_digits(SPREAD, eye, count).double() - SPREAD.double()).abs()
    step = SPREAD.abs().amax(dim=1, keepdim=True).double() * 2.0**-bits * 128 / 127
    assert (error <= 0.501 * step + 2.0**-23 * SPREAD.double().abs() + 1e-45).all()
    assert error[1].max() > 0.25 * step[1]


def test_every_digit_is_an_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Integers just at the carries: +-127, +-128 and their neighbours in each digit."""
    step = 2.0**-10
    marks = [
        0,
        1,
        127,
        128,
        129,
        255,
        256,
        32511,
        32512,
        32639,
        32640,
        32767,
        32768,
        65535,
        65536,
        8323072,
    ]
    x = torch.tensor([[sign * mark for mark in marks for sign in (1, -1)]]).double() * step
    rows: list[Tensor] = []
    real = integer._int8_product
    monkeypatch.setattr(integer, "_int8_product", lambda x, codes: rows.append(x) or real(x, codes))
    n = x.shape[1]
    found = integer._three_digits(x.float(), torch.eye(n, dtype=torch.int8))
    assert torch.equal(found.double(), x)
    d0, d1, d2 = rows[0].double().chunk(3)
    assert torch.equal((65536 * d2 + 256 * d1 + d0) * step, x)
    assert d2.abs().max() == 127


@pytest.mark.parametrize("k", [0, 16])
@pytest.mark.parametrize("tokens", [1, 5])
def test_w8a16_has_float32s_precision(k: int, tokens: int) -> None:
    weight = make_weight(10, 64, k)
    x = torch.randn(tokens, 64, generator=G)
    check(integer.w8a16(x, weight), x.double() @ dense(weight).t(), x, weight)


@pytest.mark.parametrize("k", [0, 16])
@pytest.mark.parametrize("threshold", [None, 1.5])
def test_w8a8_is_the_references(k: int, threshold: float | None) -> None:
    weight, x = make_weight(10, 64, k, threshold=threshold), torch.randn(6, 64, generator=G)
    torch.testing.assert_close(integer.w8a8(x, weight), reference.w8a8(x, weight), rtol=1e-5, atol=1e-5)  # fmt: skip


def test_an_input_that_keeps_16_bits_has_two_digits() -> None:
    """Finer than codes, coarser than float32."""
    weight, x = make_weight(10, 64, activation_bits=16), torch.randn(6, 64, generator=G)
    found = integer.w8a8(x, weight)
    expected = units(x, 2) @ dense(weight).t()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def fresh() -> Any:
    integer.available.cache_clear()
    yield
    integer.available.cache_clear()


def test_where_it_is_taken(monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    """With VNNI, and exact; the answer is remembered."""
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True, raising=False)
    assert integer.available()
    monkeypatch.setattr(torch, "_int_mm", None)
    assert integer.available()
    integer.available.cache_clear()
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: (a.long() @ b.long()).clamp(-(2**15), 2**15 - 1).int())  # fmt: skip
    assert not integer.available()  # it saturates
    integer.available.cache_clear()
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert not integer.available()
    integer.available.cache_clear()
    monkeypatch.delattr(torch.cpu, "_is_vnni_supported")
    assert not integer.available()
