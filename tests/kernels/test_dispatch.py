"""The mixed linear: every implementation against float64 truth, over odd shapes, extremes and both modes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from int8conv.errors import ArgumentError
from int8conv.kernels import (
    IMPLEMENTATIONS,
    MODES,
    FallbackCounter,
    MixedWeight,
    Mode,
    mixed_linear,
)
from int8conv.kernels.cpu import integer as cpu
from int8conv.kernels.tokens import quantize_tokens

TOLERANCE = 2e-6
"""Largest error of float32 accumulation, relative to the sum of the products' magnitudes."""

SHAPES = [
    (1, 64, 32),
    (1, 7, 5),
    (3, 33, 65),
    (5, 100, 1),
    (2, 1, 1),
    (20, 256, 96),
    (129, 704, 40),
]


@pytest.fixture(params=["int8 products", "plain"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both paths of the CPU implementation, whatever this processor has (``_int_mm`` is exact on all of CI's)."""
    monkeypatch.setattr(cpu, "has_int8_products", lambda: request.param == "int8 products")
    return str(request.param)


def make_weight(
    out: int, in_features: int, k: int = 0, seed: int = 0, threshold: float | None = None
) -> MixedWeight:
    """A random weight; rows 0 has extreme codes, row 1 is zero."""
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(-127, 128, (out, in_features), dtype=torch.int8, generator=g)
    scale = torch.rand(out, generator=g) * 0.01
    codes[0] = 127
    if out > 1:
        codes[1], scale[1] = 0, 0.0
    if not k:
        return MixedWeight(codes, scale, threshold=threshold)
    index = torch.randperm(in_features, generator=g)[:k].sort().values.to(torch.int32)
    codes[:, index.long()] = 0
    columns = (torch.randn(out, k, generator=g) * 0.5).half()
    return MixedWeight(codes, scale, index, columns, threshold)


def dense(weight: MixedWeight) -> Tensor:
    """The weight that it stands for, in float64."""
    full = weight.codes.double() * weight.scale.double()[:, None]
    if weight.outlier_index is not None and weight.outlier_weight is not None:
        full[:, weight.outlier_index.long()] = weight.outlier_weight.double()
    return full


def w8a8_truth(x: Tensor, weight: MixedWeight) -> Tensor:
    """The formula of the design in float64, from the float32 scale of each token."""
    kept = torch.zeros(x.shape[1], dtype=torch.bool)
    if weight.outlier_index is not None:
        kept[weight.outlier_index.long()] = True
    fallback = (
        x.abs() >= weight.threshold if weight.threshold else torch.zeros_like(x, dtype=torch.bool)
    ) & ~kept
    small = x.masked_fill(kept | fallback, 0.0)
    scale = small.abs().amax(1, keepdim=True) / 127.0
    codes = torch.where(scale > 0, small / scale, 0.0).round()
    exact = x.double().masked_fill(~(kept | fallback), 0.0)
    return (codes.double() * scale.double() + exact) @ dense(weight).t()


def check(y: Tensor, truth: Tensor, x: Tensor, weight: MixedWeight) -> None:
    magnitude = x.double().abs() @ dense(weight).abs().t()
    assert ((y.double() - truth).abs() <= TOLERANCE * magnitude + 1e-30).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("k", [0, 16, 48])
@pytest.mark.parametrize(("tokens", "in_features", "out"), SHAPES)
def test_against_float64(
    tokens: int, in_features: int, out: int, k: int, implementation: str, processor: str
) -> None:
    if k > in_features:
        pytest.skip("more outliers than columns")
    weight = make_weight(out, in_features, k)
    x = torch.randn(tokens, in_features, generator=torch.Generator().manual_seed(1))
    bias = torch.randn(out, generator=torch.Generator().manual_seed(2))
    y = mixed_linear(x, weight, bias, mode="w8a16", implementation=implementation)
    check(y - bias, x.double() @ dense(weight).t(), x, weight)
    y = mixed_linear(x, weight, bias, mode="w8a8", implementation=implementation)
    check(y - bias, w8a8_truth(x, weight), x, weight)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "value", [0.0, 1e-38, -3.5, 65504.0, 1e30], ids=["zero", "tiny", "equal", "fp16 max", "huge"]
)
def test_constant_tokens(value: float, mode: Mode, implementation: str, processor: str) -> None:
    """Every activation at its token's maximum, or none: no overflow, no division by zero."""
    weight = make_weight(9, 40, 16)
    x = torch.full((3, 40), value)
    x[1] = 0.0
    y = mixed_linear(x, weight, mode=mode, implementation=implementation)
    check(y, x.double() @ dense(weight).t(), x, weight)
    assert (y[1] == 0).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rounding_of_the_step_does_not_overflow_a_digit(
    implementation: str, processor: str
) -> None:
    weight = make_weight(8, 64)
    x = torch.randn(4096, 64, generator=torch.Generator().manual_seed(3))
    y = mixed_linear(x, weight, mode="w8a16", implementation=implementation)
    check(y, x.double() @ dense(weight).t(), x, weight)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_safety_net(implementation: str, processor: str) -> None:
    """One activation 100 times the others costs the rest their precision, unless the fallback takes it."""
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(1)).clamp(-3, 3)
    x[2, 5] = 300.0
    errors = {}
    for threshold in (None, 6.0):
        weight = make_weight(32, 64, threshold=threshold)
        y = mixed_linear(x, weight, mode="w8a8", implementation=implementation)
        check(y, w8a8_truth(x, weight), x, weight)
        errors[threshold] = (y - x.double() @ dense(weight).t())[2].norm()
    assert errors[6.0] < 0.05 * errors[None]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("channels", [1, 3, 8, 9, 64])
def test_few_and_many_channels_caught(implementation: str, channels: int, processor: str) -> None:
    """Columns of few channels are gathered; of many, the whole weight is taken."""
    weight = make_weight(40, 64, 16, threshold=6.0)
    x = torch.randn(20, 64, generator=torch.Generator().manual_seed(1)).clamp(-3, 3)
    x[::3, :channels] = 50.0
    y = mixed_linear(x, weight, mode="w8a8", implementation=implementation)
    check(y, w8a8_truth(x, weight), x, weight)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_net_counts_what_it_takes(implementation: str, processor: str) -> None:
    weight = make_weight(8, 64, 16, threshold=6.0)
    assert weight.outlier_index is not None
    kept = weight.outlier_index.tolist()
    free = [channel for channel in range(64) if channel not in kept]
    weight = replace(weight, counter=FallbackCounter(64))
    counter = weight.counter
    assert counter is not None
    x = torch.zeros(5, 64)
    mixed_linear(x, weight, mode="w8a8", implementation=implementation)
    x[1, free[3]], x[1, free[9]], x[4, free[3]] = 6.0, -7.0, 100.0
    x[2, kept[0]], x[3, free[0]] = 100.0, 5.99  # stored; below
    mixed_linear(x, weight, mode="w8a8", implementation=implementation)
    mixed_linear(x, weight, mode="w8a16", implementation=implementation)
    assert (counter.tokens, counter.fallback_tokens) == (10, 2)
    assert {c: int(n) for c, n in enumerate(counter.fallback) if n} == {free[3]: 2, free[9]: 1}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("k", [0, 16])
def test_a_threshold_of_zero_is_16_bits_for_all(
    k: int, implementation: str, processor: str
) -> None:
    """An error of at most half a step of 16-bit integers, whose largest is the token's largest."""
    weight = make_weight(24, 64, k, threshold=0.0)
    x = torch.randn(20, 64, generator=torch.Generator().manual_seed(1))
    x[3, 5], x[7], x[9] = 300.0, 0.0, -65504.0
    y = mixed_linear(x, weight, mode="w8a8", implementation=implementation).double()
    half_step = x.double().abs().amax(1, keepdim=True) / 32512 / 2
    bound = half_step * dense(weight).abs().sum(1) * 1.01
    magnitude = x.double().abs() @ dense(weight).abs().t()
    truth = x.double() @ dense(weight).t()
    assert ((y - truth).abs() <= bound + TOLERANCE * magnitude).all()
    assert (y[7] == 0).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_every_activation_caught_by_the_net(implementation: str, processor: str) -> None:
    weight = make_weight(16, 32, threshold=1.0)
    x = torch.full((2, 32), 5.0)
    y = mixed_linear(x, weight, mode="w8a8", implementation=implementation)
    check(y, x.double() @ dense(weight).t(), x, weight)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("mode", MODES)
def test_outlier_columns_do_not_set_the_scale(
    mode: Mode, implementation: str, processor: str
) -> None:
    weight = make_weight(24, 64, 16)
    assert weight.outlier_index is not None
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    x[:, weight.outlier_index.long()] *= 1000
    y = mixed_linear(x, weight, mode=mode, implementation=implementation).double()
    truth = x.double() @ dense(weight).t()
    assert ((y - truth).norm() / truth.norm()) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_half_activations_round_once(
    dtype: torch.dtype, implementation: str, processor: str
) -> None:
    weight = make_weight(32, 64, 16)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    y = mixed_linear(x, weight, mode="w8a16", implementation=implementation)
    wide = mixed_linear(x.float(), weight, mode="w8a16", implementation=implementation)
    assert y.dtype == dtype
    assert torch.equal(y, wide.to(dtype))


def test_few_tokens_take_w8a16_and_many_w8a8() -> None:
    weight = make_weight(32, 64)
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(mixed_linear(x[:1], weight), mixed_linear(x[:1], weight, mode="w8a16"))
    assert torch.equal(mixed_linear(x, weight), mixed_linear(x, weight, mode="w8a8"))


def test_leading_axes_are_kept() -> None:
    weight = make_weight(32, 64)
    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(1))
    y = mixed_linear(x, weight, mode="w8a16")
    assert y.shape == (2, 3, 32)
    torch.testing.assert_close(y[1], mixed_linear(x[1], weight, mode="w8a16"))


def test_input_is_not_changed() -> None:
    weight = make_weight(32, 64, 16, threshold=1.0)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    before = x.clone()
    for mode in MODES:
        mixed_linear(x, weight, mode=mode)
    assert torch.equal(x, before)


def test_tokens_are_rounded_half_to_even() -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, -2.5, 0.0]])
    codes, scale = quantize_tokens(x)
    assert scale.item() == 1.0
    assert codes.tolist() == [[127, 0, 2, -2, 0]]


def test_bad_arguments_are_named() -> None:
    weight = make_weight(4, 8)
    with pytest.raises(ArgumentError, match=r"last axis of x: expected 8, found 9"):
        mixed_linear(torch.zeros(1, 9), weight)
    with pytest.raises(ArgumentError, match="mode: expected w8a8 or w8a16, found 'w4'"):
        mixed_linear(torch.zeros(1, 8), weight, mode="w4")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="implementation"):
        mixed_linear(torch.zeros(1, 8), weight, implementation="cuda")
