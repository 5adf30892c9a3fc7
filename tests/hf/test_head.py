"""A head that reads 16 bits: the same numbers, and never an old weight."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from int8conv.hf.head import NarrowHead
from int8conv.kernels.cpu import jit

pytestmark = pytest.mark.skipif(not jit.available(), reason="needs numba")


def head(dtype: torch.dtype = torch.float16) -> NarrowHead:
    torch.manual_seed(0)
    made = nn.Linear(32, 5000, bias=True)
    made.weight.data = made.weight.data.to(dtype).float()
    made.__class__ = NarrowHead
    assert isinstance(made, NarrowHead)
    return made


def plain(linear: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return x @ linear.weight.t() + linear.bias


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_the_same_products(dtype: torch.dtype) -> None:
    linear, x = head(dtype), torch.randn(2, 1, 32)
    torch.testing.assert_close(linear(x), plain(linear, x), rtol=1e-5, atol=1e-5)
    narrow = linear._narrow()
    assert narrow is not None
    assert narrow.dtype == dtype
    assert linear._narrow() is narrow


@torch.no_grad()
def test_a_changed_weight_is_copied_again() -> None:
    linear, x = head(), torch.randn(1, 32)
    linear(x)
    linear.weight.mul_(2)
    torch.testing.assert_close(linear(x), plain(linear, x), rtol=1e-5, atol=1e-5)
    linear.weight.data = linear.weight.data.flip(0)
    torch.testing.assert_close(linear(x), plain(linear, x), rtol=1e-5, atol=1e-5)
    linear.weight[4999, 31] = 1 + 2**-20  # does not fit
    assert torch.equal(linear(x), nn.functional.linear(x, linear.weight, linear.bias))
    assert linear._narrow() is None


def test_many_tokens_and_gradients_are_pytorchs() -> None:
    linear, x = head(), torch.randn(3, 32)
    linear(x).sum().backward()
    assert linear.weight.grad is not None
    with torch.no_grad():
        linear(torch.randn(17, 32))  # more than are compiled on any processor
    assert "_copy" not in vars(linear)


@torch.no_grad()
def test_a_copy_has_no_copy() -> None:
    linear, x = head(), torch.randn(1, 32)
    expected = linear(x)
    twin = copy.deepcopy(linear)
    assert "_copy" not in vars(twin)
    assert torch.equal(twin(x), expected)
