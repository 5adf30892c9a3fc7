"""The prologue: what it refuses, and moments and values of a token as a kernel reads them, against float64."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from int8conv.errors import ArgumentError
from int8conv.kernels.gpu.launch import launch
from int8conv.kernels.gpu.prologue import NO_PROLOGUE, Prologue, moments, value_at

from .tensors import HALF_STEP, HALVES

CHANNELS = 21
G = torch.Generator().manual_seed(0)
X = torch.randn(2, CHANNELS, generator=G) * torch.tensor([[1.0], [30.0]]) + 2


@triton.jit
def kernel(
    x, times, weight, bias, out, stats, eps, channels, NORM: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A token of ``channels``, in blocks that do not divide them."""
    row = tl.program_id(0)
    mean, rstd = moments(x + row * channels, eps, channels, NORM, BLOCK)
    tl.store(stats + row * 2, mean)
    tl.store(stats + row * 2 + 1, rstd)
    times_row = None
    if times is not None:
        times_row = times + row * channels
    for start in range(0, channels, BLOCK):
        i = start + tl.arange(0, BLOCK)
        mask = i < channels
        y = value_at(x + row * channels, times_row, weight, bias, i, mask, mean, rstd, NORM, ACTIVATION)  # fmt: skip
        tl.store(out + row * channels + i, y, mask=mask)


def run(x: Tensor, prologue: Prologue) -> tuple[Tensor, Tensor]:
    """The values, and each token's mean and one over its root mean square."""
    p, out, stats = prologue, torch.full_like(x, float("nan")), torch.zeros(len(x), 2)
    launch(kernel, (len(x),), x, p.times, p.weight, p.bias, out, stats, p.eps, x.shape[1], NORM=p.norm, ACTIVATION=p.activation, BLOCK=8)  # fmt: skip
    return out, stats


def close(found: Tensor, expected: Tensor) -> None:
    """Rounded twice at most on the way."""
    assert found.isfinite().all()
    assert ((found.double() - expected).abs() <= 2.1 * HALF_STEP[found.dtype] * expected.abs() + 1e-6).all()  # fmt: skip


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_moments(dtype: torch.dtype) -> None:
    x = X.to(dtype)
    wide = x.double()
    for norm, mean in (("rms", torch.zeros(2, 1)), ("layer", wide.mean(1, keepdim=True))):
        _, found = run(x, Prologue(norm=norm, eps=0.5))
        rstd = ((wide - mean).square().mean(1) + 0.5).rsqrt()
        expected = torch.stack([mean[:, 0].double(), rstd], dim=1)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    _, found = run(x, NO_PROLOGUE)
    assert found.tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_rms_norm(dtype: torch.dtype) -> None:
    x = X.to(dtype)
    gain = torch.randn(CHANNELS, generator=G)
    normed = x.double() * (x.double().square().mean(1, keepdim=True) + 1e-5).rsqrt()
    close(run(x, Prologue(norm="rms", eps=1e-5))[0], normed)
    weight = gain.to(dtype)
    close(run(x, Prologue(norm="rms", weight=weight, eps=1e-5))[0], normed * weight.double())
    found, _ = run(x, Prologue(norm="rms", weight=gain, eps=1e-5))
    error = (found.double() - normed * gain.double()).abs()
    assert (error <= 1.01 * HALF_STEP[dtype] * (normed * gain.double()).abs() + 1e-6).all()  # once


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("weight", "bias"), [(False, False), (True, False), (True, True)])
def test_layer_norm(dtype: torch.dtype, weight: bool, bias: bool) -> None:
    x, gain, shift = X.to(dtype), *(torch.randn(2, CHANNELS, generator=G).to(dtype))
    prologue = Prologue(norm="layer", weight=gain if weight else None, bias=shift if bias else None, eps=1e-5)  # fmt: skip
    expected = F.layer_norm(
        x.double(), (CHANNELS,), gain.double() if weight else None, shift.double() if bias else None, 1e-5
    )  # fmt: skip
    found, _ = run(x, prologue)
    assert ((found.double() - expected).abs() <= 1.01 * HALF_STEP[dtype] * expected.abs() + 1e-5).all()  # fmt: skip


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("times", [False, True])
def test_an_activation_and_a_product(dtype: torch.dtype, times: bool) -> None:
    x, up = X.to(dtype), torch.randn(X.shape, generator=G).to(dtype)
    prologue = Prologue(activation="silu", times=up if times else None)
    close(run(x, prologue)[0], F.silu(x.double()) * (up.double() if times else 1))
    assert torch.equal(run(x, Prologue(activation="relu"))[0], F.relu(x))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_without_a_prologue_values_stay(dtype: torch.dtype) -> None:
    assert torch.equal(run(X.to(dtype), NO_PROLOGUE)[0], X.to(dtype))


def test_what_is_empty() -> None:
    assert NO_PROLOGUE.is_empty
    assert not Prologue(norm="rms").is_empty
    assert not Prologue(activation="relu").is_empty


def test_what_does_not_fit() -> None:
    x = X.half()
    Prologue(activation="silu", times=x).check(x)
    NO_PROLOGUE.check(x)
    for prologue, given, words in (
        (NO_PROLOGUE, X, "dtype of x: expected float16 or bfloat16, found torch.float32"),
        (NO_PROLOGUE, x.t(), "stride of x's last axis"),
        (Prologue(times=X), x, "dtype of times"),
        (Prologue(times=x[:, :5]), x, "shape of times: expected [rows, 21], found [2, 5]"),
        (Prologue(times=x[:1]), x, "shape of times: expected [2, 21], found [1, 21]"),
        (Prologue(times=x.bfloat16()), x, "shape of times"),
    ):
        with pytest.raises(ArgumentError, match=re.escape(words)):
            prologue.check(given)
