"""The norm's formula against its definition in float64, and where it rounds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from int8conv.runtime.decoder.norms import NormWeights, normalised


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 5, 48, generator=torch.Generator().manual_seed(0)) * 3 + 1


def test_rms_norm_divides_by_the_root_of_the_mean_square(x: Tensor) -> None:
    weight, eps = torch.linspace(-2, 3, 48), 0.01
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()
    found = normalised(x, NormWeights(True, eps, weight, None))
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bias", [None, torch.linspace(5, -5, 48)])
def test_layer_norm_takes_the_mean_away_first(x: Tensor, bias: Tensor | None) -> None:
    weight, eps = torch.linspace(-2, 3, 48), 0.01
    wide = x.double()
    centred = wide - wide.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()
    expected += 0 if bias is None else bias.double()
    found = normalised(x, NormWeights(False, eps, weight, bias))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_squares_of_float16_do_not_overflow() -> None:
    x = torch.tensor([[30000.0, -30000.0, 30000.0, 0.0]]).half()
    found = normalised(x, NormWeights(True, 1e-6, torch.ones(4).half(), None))
    assert found.dtype == torch.float16
    torch.testing.assert_close(found, torch.tensor([[1.1547, -1.1547, 1.1547, 0.0]]).half())


def test_a_float32_weight_multiplies_before_rounding() -> None:
    """As in Gemma; a weight in the dtype of activations multiplies what is rounded already."""
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).bfloat16()
    weight = torch.tensor([1.001, 0.999, 1.003, 1.005])
    wide = x.float() / x.float().square().mean().sqrt()
    found = normalised(x, NormWeights(True, 0.0, weight, None))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, (wide * weight).bfloat16())
    narrow = normalised(x, NormWeights(True, 0.0, weight.bfloat16(), None))
    assert torch.equal(narrow, wide.bfloat16() * weight.bfloat16())


def test_a_row_of_zeros_stays_zero() -> None:
    x = torch.zeros(2, 8)
    assert torch.equal(normalised(x, NormWeights(True, 1e-6, torch.ones(8), None)), x)
