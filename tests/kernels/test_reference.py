"""The mixed linear's implementations side by side: each against float64 truth, over odd shapes, extremes and both modes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, cast

import pytest
import torch
from torch import Tensor

from int8conv.kernels import reference
from int8conv.kernels.cpu import integer, widened
from int8conv.kernels.dispatch import MODES, Mode
from int8conv.kernels.tokens import quantize_tokens
from int8conv.kernels.weight import FallbackCounter, MixedWeight

from .mixed_weights import TOLERANCE, check, dense, make_weight


class Implementation(Protocol):
    def w8a8(self, x: Tensor, weight: MixedWeight) -> Tensor: ...

    def w8a16(self, x: Tensor, weight: MixedWeight) -> Tensor: ...


IMPLEMENTATIONS = cast("list[Implementation]", [reference, integer, widened])
"""``integer`` whatever this processor has: ``_int_mm`` is exact on all of CI's. ``jit`` has tests of its own."""
NAMES = ["reference", "integer", "widened"]


def multiply(implementation: Any, mode: Mode) -> Callable[[Tensor, MixedWeight], Tensor]:
    found: Callable[[Tensor, MixedWeight], Tensor] = getattr(implementation, mode)
    return found


SHAPES = [
    (1, 64, 32),
    (1, 7, 5),
    (3, 33, 65),
    (5, 100, 1),
    (2, 1, 1),
    (20, 256, 96),
    (129, 704, 40),
]


def block_of(implementation: Any) -> int | None:
    """Channels with a scale of their own; None: all."""
    return getattr(implementation, "BLOCK", None)


def w8a8_truth(x: Tensor, weight: MixedWeight, block: int | None = None) -> Tensor:
    """The formula of the design in float64, from the float32 scales of each token."""
    kept = torch.zeros(x.shape[1], dtype=torch.bool)
    if weight.outlier_index is not None:
        kept[weight.outlier_index.long()] = True
    fallback = (
        x.abs() >= weight.threshold if weight.threshold else torch.zeros_like(x, dtype=torch.bool)
    ) & ~kept
    small = x.masked_fill(kept | fallback, 0.0)
    parts = small.split(block or x.shape[1], 1)
    scale = torch.cat([(p.abs().amax(1, keepdim=True) / 127.0).expand_as(p) for p in parts], 1)
    codes = torch.where(scale > 0, small / scale, 0.0).round()
    exact = x.double().masked_fill(~(kept | fallback), 0.0)
    return (codes.double() * scale.double() + exact) @ dense(weight).t()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=NAMES)
@pytest.mark.parametrize("k", [0, 16, 48])
@pytest.mark.parametrize(("tokens", "in_features", "out"), SHAPES)
def test_against_float64(
    tokens: int, in_features: int, out: int, k: int, implementation: Implementation
) -> None:
    if k > in_features:
        pytest.skip("more outliers than columns")
    weight = make_weight(out, in_features, k)
    x = torch.randn(tokens, in_features, generator=torch.Generator().manual_seed(1))
    y = implementation.w8a16(x, weight)
    check(y, x.double() @ dense(weight).t(), x, weight)
    y = implementation.w8a8(x, weight)
    check(y, w8a8_truth(x, weight, block_of(implementation)), x, weight)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=NAMES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "value", [0.0, 1e-38, -3.5, 65504.0, 1e30], ids=["zero", "tiny", "equal", "fp16 max", "huge"]
)
def test_constant_tokens(value: float, mode: Mode, implementation: Implementation) -> None:
    """Every activation at its token's maximum, or none: no overflow, no division by zero."""
    weight = make_weight(9, 40, 16)
    x = torch.full((3, 40), value)
    x[1] = 0.0
    y = multiply(implementation, mode)(x, weight)
    check(y, x.double() @ dense(weight).t(), x, weight)
    assert (y[1] == 0).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=NAMES)
def test_rounding_of_the_step_does_not_overflow_a_digit(implementation: Implementation) -> None:
    weight = make_weight(8, 64)
    x = torch.randn(4096, 64, generator=torch.Generator().manual_seed(3))
    y = implementation.w8a16(x, weight)
    check(y, x.double() @ dense(weight).t(), x, weight)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=NAMES)
def test_the_outlier_fallback(implementation: Implementation) -> None:
    """One activation 100 times the others costs the rest their precision, unless the fallback takes it."""
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(1)).clamp(-3, 3)
    x[2, 5] = 300.0
    errors = {}
    for threshold in (None, 6.0):
        weight = make_weight(32, 64, threshold=threshold)
        y = implementation.w8a8(x, weight)
        check(y, w8a8_truth(x, weight, block_of(implementation)), x, weight)
        errors[threshold] = (y - x.double() @ dense(weight).t())[2].norm()
    assert errors[6.0] < 0.05 * errors[None]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=NAMES)
@pytest.mark.parametrize("channels", [1, 3, 8, 9, 64])
def test_few_and_many_channels_taken(implementation: Implementation, channels: int) -> None:
    """Columns of few channels are gathered; of many, the whole weight is taken."""
    weight = make_weight(40, 64, 16, threshold=6.0)
    x = torch.randn(20, 64, generator=torch.Generator().manual_seed(1)).clamp(-3, 3)
    x[::3, :channels] = 50.0
    y = implementation.w8a8(x, weight)
    check(y, w8a8_truth(x, weight, block_of(implementation)), x, weight)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=NAMES)
def test_the_fallback_counts_what_it_takes(implementation: Implementation) -> None:
    weight = make_weight(8, 64, 16, threshold=6.0)
    assert weight.outlier_index is not None
    kept = weight.outlier_index.tolist()
    free = [channel for channel in range(64) if channel not in kept]
    weight = replace(weight, counter=FallbackCounter(64))
    counter = weight.counter
    assert counter is not None
    x = torch.zeros(5, 64)
    implementation.w8a8(x, weight)
    x[1, free[3]], x[1, free[9]], x[4, free[3]] = 6.0, -7.0, 100.0
    x[2, kept[0]], x[3, free[0]] = 100.0, 5.99  # stored; below
    implementation.w8a8(x, weight)
    implementation.w8a16(x, weight)
    assert (counter.tokens, counter.fallback_tokens) == (10, 2)
    assert {c: int(n) for c, n in enumerate(counter.fallback) if n} == {free[3]: 2, free[9]: 1}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=NAMES)
@pytest.mark.parametrize("k", [0, 16])
def test_an_input_may_keep_16_bits(k: int, implementation: Implementation) -> None:
    """An error of at most half a step of 16-bit integers, whose largest is the token's largest."""
    weight = make_weight(24, 64, k, activation_bits=16)
    x = torch.randn(20, 64, generator=torch.Generator().manual_seed(1))
    x[3, 5], x[7], x[9] = 300.0, 0.0, -65504.0
    y = implementation.w8a8(x, weight).double()
    half_step = x.double().abs().amax(1, keepdim=True) / 32512 / 2
    bound = half_step * dense(weight).abs().sum(1) * 1.01
    magnitude = x.double().abs() @ dense(weight).abs().t()
    truth = x.double() @ dense(weight).t()
    assert ((y - truth).abs() <= bound + TOLERANCE * magnitude).all()
    assert (y[7] == 0).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=NAMES)
def test_every_activation_past_the_threshold(implementation: Implementation) -> None:
    weight = make_weight(16, 32, threshold=1.0)
    x = torch.full((2, 32), 5.0)
    y = implementation.w8a8(x, weight)
    check(y, x.double() @ dense(weight).t(), x, weight)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=NAMES)
@pytest.mark.parametrize("mode", MODES)
def test_outlier_columns_do_not_set_the_scale(mode: Mode, implementation: Implementation) -> None:
    weight = make_weight(24, 64, 16)
    assert weight.outlier_index is not None
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    x[:, weight.outlier_index.long()] *= 1000
    y = multiply(implementation, mode)(x, weight).double()
    truth = x.double() @ dense(weight).t()
    assert ((y - truth).norm() / truth.norm()) < 1e-4


def test_tokens_are_rounded_half_to_even() -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, -2.5, 0.0]])
    codes, scale = quantize_tokens(x)
    assert scale.item() == 1.0
    assert codes.tolist() == [[127, 0, 2, -2, 0]]
