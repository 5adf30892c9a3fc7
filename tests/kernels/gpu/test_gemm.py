"""The int8 GEMM in the interpreter: exact int32 sums, epilogue against float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from int8conv.errors import ArgumentError
from int8conv.kernels.gpu import configs, gemm, quantize, reference
from int8conv.kernels.gpu.quantize import QuantizedTokens
from int8conv.kernels.weight import MixedWeight

from .tensors import HALVES, check, dense, make_tokens, make_weight

SMALL = {"block_m": 16, "block_n": 32, "block_k": 64, "group": 2, "fallback_k": 64, "num_warps": 4, "num_stages": 2}  # fmt: skip
SMALL_TMA = configs.with_tma(SMALL)
TABLE = [dict(row) for row in configs.shipped("gemm", 80)]

SHAPES = [(1, 64, 32), (1, 7, 5), (3, 33, 65), (20, 1, 9), (37, 300, 40), (17, 4200, 9)]


def quantized(x: Tensor, weight: MixedWeight) -> QuantizedTokens:
    options = {"index": weight.outlier_index, "is_outlier": weight.is_outlier}
    return quantize.quantize(x, **options, threshold=weight.threshold)


def truth(x: Tensor, q: QuantizedTokens, weight: MixedWeight) -> tuple[Tensor, Tensor]:
    """Float64 result of the formula without bias, and the sum of the magnitudes of its terms."""
    stored = torch.zeros(x.shape[1], dtype=torch.bool)
    if weight.outlier_index is not None:
        stored[weight.outlier_index.long()] = True
    exact = stored | (x.float().abs() >= (weight.threshold or torch.inf))
    values = torch.where(exact, x.double(), q.codes.double() * q.scale.double()[:, None])
    full = dense(weight)
    return values @ full.t(), values.abs() @ full.t().abs()


@pytest.mark.parametrize("config", [SMALL, SMALL_TMA, *TABLE], ids=str)
@pytest.mark.parametrize("channels", [1000, 1008])
def test_sums_of_codes_are_exact(channels: int, config: dict[str, int]) -> None:
    """Scales of one, and sums below 2^24: a float32 result is the int32 sums themselves."""
    g = torch.Generator().manual_seed(0)
    codes = torch.randint(-127, 128, (50, channels), dtype=torch.int8, generator=g)
    w = torch.randint(-127, 128, (40, channels), dtype=torch.int8, generator=g)
    codes[7], w[3], w[4] = 127, 127, -127
    x = QuantizedTokens(codes, torch.ones(50), None, None, None)
    y = gemm.gemm(x, MixedWeight(w, torch.ones(40)), dtype=torch.float32, config=config)
    assert torch.equal(y.double(), codes.double() @ w.double().t())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("k", [0, 48])
@pytest.mark.parametrize(("tokens", "channels", "out"), SHAPES)
@pytest.mark.parametrize("threshold", [None, 6.0], ids=["no fallback", "outlier_fallback"])
def test_against_float64(
    tokens: int, channels: int, out: int, k: int, dtype: torch.dtype, threshold: float | None
) -> None:
    if k > channels:
        pytest.skip("more outliers than columns")
    weight = make_weight(out, channels, k, threshold=threshold, dtype=dtype)
    x = make_tokens(tokens, channels, dtype, large=25.0)
    bias = torch.randn(out, generator=torch.Generator().manual_seed(2)).to(dtype)
    residual = make_tokens(tokens, out, dtype, seed=3)
    q = quantized(x, weight)
    expected, magnitude = truth(x, q, weight)
    y = gemm.gemm(q, weight, dtype=dtype, config=SMALL)
    check(y, expected, magnitude)
    y = gemm.gemm(q, weight, bias, residual, config=SMALL)
    assert y.dtype == dtype
    expected = expected + bias.double() + residual.double()
    check(y, expected, magnitude + bias.double().abs() + residual.double().abs())
    check(reference.gemm(q, weight, bias, residual), expected, magnitude + 1)


@pytest.mark.parametrize("config", TABLE, ids=str)
def test_shipped_configurations(config: dict[str, int]) -> None:
    weight = make_weight(200, 300, 16, threshold=6.0)
    x = make_tokens(150, 300, torch.float16, large=25.0)
    q = quantized(x, weight)
    check(gemm.gemm(q, weight, config=config), *truth(x, q, weight))


@pytest.mark.parametrize(("tokens", "channels", "out"), [(1, 64, 32), (37, 304, 40), (17, 4208, 9)])
def test_descriptors_give_the_same_bits(tokens: int, channels: int, out: int, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Tiles over every edge; where they can be used, they are."""
    made = []
    real = gemm._descriptors
    monkeypatch.setattr(gemm, "_descriptors", lambda *a: made.append(real(*a)) or made[-1])
    weight = make_weight(out, channels, 16, threshold=6.0)
    q = quantized(make_tokens(tokens, channels, torch.float16, large=25.0), weight)
    y = gemm.gemm(q, weight, config=SMALL_TMA)
    assert torch.equal(y, gemm.gemm(q, weight, config=SMALL))
    assert [found is not None for found in made] == [True, False]


def test_rows_at_odd_addresses_have_no_descriptors() -> None:
    memory = torch.zeros(4 * 64 + 1, dtype=torch.int8)
    aligned = memory[: 4 * 64].view(4, 64)
    shifted, narrow = memory[1:].view(4, 64), torch.zeros(4, 40, dtype=torch.int8)
    assert gemm._descriptors(aligned, aligned, SMALL_TMA) is not None
    for x, w in ((shifted, aligned), (aligned, shifted), (narrow, narrow), (aligned[:0], aligned)):
        assert gemm._descriptors(x, w, SMALL_TMA) is None


def test_int32_holds_the_largest_sum() -> None:
    channels = gemm.MAX_CHANNELS
    codes = torch.full((1, channels), 127, dtype=torch.int8)
    x = QuantizedTokens(codes, torch.ones(1), None, None, None)
    y = gemm.gemm(x, MixedWeight(codes, torch.tensor([2.0**-31])), dtype=torch.float16)
    assert y.item() == 1.0
    codes = torch.full((1, channels + 1), 127, dtype=torch.int8)
    x = QuantizedTokens(codes, torch.ones(1), None, None, None)
    with pytest.raises(ArgumentError, match="channels: expected at most"):
        gemm.gemm(x, MixedWeight(codes, torch.ones(1)))


def test_only_marked_blocks_are_read_for_the_net() -> None:
    """The 16-bit values of blocks that no token marks may be garbage, and so may other tokens' in a marked block."""
    weight = make_weight(40, 600, threshold=6.0)
    x = make_tokens(40, 600, torch.float16)
    x[3, 200] = 50.0
    x[17, 599] = -50.0
    q = quantized(x, weight)
    exact = torch.full_like(x, float("nan"))
    exact[3, 128:256], exact[17, 512:] = x[3, 128:256], x[17, 512:]
    y = gemm.gemm(dataclasses.replace(q, exact=exact), weight, config=SMALL)
    check(y, *truth(x, q, weight))


def test_every_value_caught() -> None:
    weight = make_weight(16, 260, 16, threshold=1.0)
    x = torch.full((5, 260), 5.0).half()
    q = quantized(x, weight)
    assert (q.scale == 0).all()
    check(gemm.gemm(q, weight, config=SMALL), *truth(x, q, weight))


def test_every_column_an_outlier() -> None:
    weight = make_weight(16, 48, 48)
    x = make_tokens(5, 48, torch.float16, large=1000.0)
    q = quantized(x, weight)
    check(gemm.gemm(q, weight, config=SMALL), x.double() @ dense(weight).t(), x.double().abs() @ dense(weight).t().abs())  # fmt: skip


def test_zero_rows_give_the_bias() -> None:
    weight = make_weight(16, 64)
    q = quantized(torch.zeros(3, 64).half(), weight)
    bias = torch.arange(16).half()
    assert torch.equal(gemm.gemm(q, weight, bias, dtype=torch.float16), bias.expand(3, 16))


def test_nan_stays_in_its_token() -> None:
    weight = make_weight(16, 64)
    q = quantized(make_tokens(3, 64, torch.float16), weight)
    q.scale[2] = float("nan")
    y = gemm.gemm(q, weight, dtype=torch.float16)
    assert y.isnan().any(1).tolist() == [False, False, True]


def test_no_tokens() -> None:
    q = quantized(torch.empty(0, 64).half(), make_weight(16, 64))
    assert gemm.gemm(q, make_weight(16, 64)).shape == (0, 16)


def test_bad_arguments_are_named() -> None:
    weight = make_weight(16, 64, 16)
    q = quantized(make_tokens(3, 64, torch.float16), weight)
    with pytest.raises(ArgumentError, match="channels of x: expected 32, found 64"):
        gemm.gemm(q, make_weight(16, 32))
    with pytest.raises(ArgumentError, match="outlier channels of x: expected 0"):
        gemm.gemm(q, make_weight(16, 64))
    with pytest.raises(ArgumentError, match="shape of residual"):
        gemm.gemm(q, weight, residual=torch.zeros(3, 17).half())
    gaps = dataclasses.replace(weight, codes=torch.zeros(64, 16, dtype=torch.int8).t())
    with pytest.raises(ArgumentError, match="layout of codes: expected contiguous"):
        gemm.gemm(q, gaps)
