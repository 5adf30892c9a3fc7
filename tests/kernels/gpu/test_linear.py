"""Kernels joined to the mixed linear, in the interpreter, against the reference of the other implementations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from int8conv.kernels import reference as reference_linear
from int8conv.kernels.dispatch import MODES, Mode
from int8conv.kernels.gpu import linear, reference
from int8conv.kernels.gpu.linear import Operand
from int8conv.kernels.gpu.prologue import Prologue

from .tensors import HALVES, check, dense, make_tokens, make_weight


def magnitude(x: Tensor, weight: object) -> Tensor:
    return x.double().abs() @ dense(weight).abs().t()  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tokens", [1, 5, 70])
def test_equals_the_reference_implementation(tokens: int, mode: Mode, dtype: torch.dtype) -> None:
    """The same formula in float32; activations and codes are the same bits, sums differ by their rounding alone."""
    weight = make_weight(40, 200, 16, threshold=6.0, dtype=dtype)
    x, bias = make_tokens(tokens, 200, dtype, large=30.0), torch.randn(40).to(dtype)
    residual = make_tokens(tokens, 40, dtype, seed=4)
    y = linear.linear(Operand(x), weight, bias, residual, mode=mode)
    expected = getattr(reference_linear, mode)(x.float(), weight) + bias.float()
    check(y, expected.double() + residual.double(), magnitude(x, weight) + 10)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tokens", [2, 70])
def test_gated_feed_forward(tokens: int, mode: Mode) -> None:
    """Norm, gate and up, activation, down: as many kernels as the mode needs, the same numbers."""
    wide, down = make_weight(2 * 48, 64, 16, threshold=6.0), make_weight(64, 48, 16, threshold=6.0)
    x, gain = make_tokens(tokens, 64, torch.float16), torch.rand(64).half()
    norm = Prologue(norm="rms", weight=gain, eps=1e-5)
    inner = linear.gated(Operand(x, norm), wide, activation="silu", mode=mode)
    y = linear.linear(inner, down, residual=x, mode=mode)
    normed = reference.apply(x, norm)
    gate, up = getattr(reference_linear, mode)(normed.float(), wide).to(normed.dtype).chunk(2, 1)
    product = reference.apply(gate.contiguous(), Prologue(activation="silu", times=up.contiguous()))
    assert (inner.value().double() - product.double()).abs().max() <= 2e-3 * product.abs().max()
    expected = x.double() + getattr(reference_linear, mode)(inner.value().float(), down).double()  # fmt: skip
    torch.testing.assert_close(y.double(), expected, atol=4e-3, rtol=2e-3)


def test_mode_follows_the_number_of_tokens() -> None:
    device = torch.device("cpu")
    modes = [linear.mode_for(tokens, device) for tokens in (1, 8, 1000)]
    assert modes == ["w8a16", "w8a16", "w8a8"]
