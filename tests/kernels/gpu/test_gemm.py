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

SMALL = {"block_m": 16, "block_n": 32, "block_k": 64, "group": 2, "num_warps": 4, "num_stages": 2}  # fmt: skip
SMALL_TMA = configs.with_tma(SMALL)
IN_PARTS = SMALL | {"parts": 2, "from_zero": 1}
TABLE = [dict(row) for row in configs.shipped("gemm", 80)]

BLOCKS = [64, 128]
SHAPES = [(1, 64, 32), (1, 7, 5), (3, 33, 65), (20, 1, 9), (37, 300, 40), (17, 1100, 9)]


def quantized(x: Tensor, weight: MixedWeight, block: int = 128) -> QuantizedTokens:
    options = {"index": weight.outlier_index, "is_outlier": weight.is_outlier}
    return quantize.quantize(x, **options, block=block)


def ones(codes: Tensor, block: int = 128) -> QuantizedTokens:
    """Codes with scales of one."""
    tokens, channels = codes.shape
    return QuantizedTokens(codes, torch.ones(-(-channels // block), tokens), None, torch.float16, block)  # fmt: skip


def truth(x: Tensor, q: QuantizedTokens, weight: MixedWeight) -> tuple[Tensor, Tensor]:
    """Float64 result of the formula without bias, and the sum of the magnitudes of its terms."""
    values = reference.values_of(q)
    if weight.outlier_index is not None:
        stored = weight.outlier_index.long()
        values[:, stored] = x.double()[:, stored]
    full = dense(weight)
    return values @ full.t(), values.abs() @ full.t().abs()


@pytest.mark.parametrize("config", [SMALL, SMALL_TMA, IN_PARTS, *TABLE], ids=str)
@pytest.mark.parametrize("channels", [1000, 1008])
def test_sums_of_codes_are_exact(channels: int, config: dict[str, int]) -> None:
    """Scales of one, and sums below 2^24: a float32 result is the integer sums themselves."""
    g = torch.Generator().manual_seed(0)
    codes = torch.randint(-127, 128, (50, channels), dtype=torch.int8, generator=g)
    w = torch.randint(-127, 128, (40, channels), dtype=torch.int8, generator=g)
    codes[7], w[3], w[4] = 127, 127, -127
    for block in BLOCKS:
        weight = MixedWeight(w, torch.ones(40))
        y = gemm.gemm(ones(codes, block), weight, dtype=torch.float32, config=config)
        assert torch.equal(y.double(), codes.double() @ w.double().t())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("k", [0, 48])
@pytest.mark.parametrize(("tokens", "channels", "out"), SHAPES)
def test_against_float64(tokens: int, channels: int, out: int, k: int, dtype: torch.dtype) -> None:
    if k > channels:
        pytest.skip("more outliers than columns")
    weight = make_weight(out, channels, k, dtype=dtype)
    x = make_tokens(tokens, channels, dtype, large=25.0)
    bias = torch.randn(out, generator=torch.Generator().manual_seed(2)).to(dtype)
    residual = make_tokens(tokens, out, dtype, seed=3)
    q = quantized(x, weight, 64 if k else 128)
    expected, magnitude = truth(x, q, weight)
    y = gemm.gemm(q, weight, config=SMALL)
    check(y, expected, magnitude)
    y = gemm.gemm(q, weight, bias, residual, config=IN_PARTS)
    assert y.dtype == dtype
    expected = expected + bias.double() + residual.double()
    check(y, expected, magnitude + bias.double().abs() + residual.double().abs())
    check(reference.gemm(q, weight, bias, residual), expected, magnitude + 1)


@pytest.mark.parametrize("config", TABLE, ids=str)
def test_shipped_configurations(config: dict[str, int]) -> None:
    weight = make_weight(140, 200, 16)
    x = make_tokens(140, 200, torch.float16, large=25.0)
    q = quantized(x, weight, 64)
    check(gemm.gemm(q, weight, config=config), *truth(x, q, weight))


@pytest.mark.parametrize("block", BLOCKS)
def test_heavy_tails_against_exact_activations(block: int) -> None:
    """What a gated FFN multiplies: the error is at most half a step of each block's own scale, however large others are."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(9, 1000, generator=g) * torch.randn(9, 1000, generator=g).exp().square()
    x[4, 5], x[5, 900] = 4000.0, -3000.0
    x, weight = x.half(), make_weight(24, 1000, 16)
    y = gemm.gemm(quantized(x, weight, block), weight, dtype=torch.float32, config=IN_PARTS)
    full = dense(weight)
    kept = x.double().index_fill(1, weight.outlier_index.long(), 0.0)  # type: ignore[union-attr]
    peak = torch.nn.functional.pad(kept.abs(), (0, -1000 % block)).unflatten(1, (-1, block)).amax(2)
    half_step = (peak / 254).repeat_interleave(block, 1)[:, :1000]
    inner = full.abs().index_fill(1, weight.outlier_index.long(), 0.0)  # type: ignore[union-attr]
    allowed = half_step @ inner.t() + 2e-6 * (x.double().abs() @ full.abs().t())
    error = (y.double() - x.double() @ full.t()).abs()
    assert (error <= allowed).all()
    token = (kept.abs().amax(1, keepdim=True) / 254).expand(9, 1000) @ inner.t()
    assert (allowed[4:6] < 0.3 * token[4:6])[:, 2:].all()  # the bound that one scale per token has


@pytest.mark.parametrize(("tokens", "channels", "out"), [(1, 64, 32), (37, 304, 40), (17, 4208, 9)])
def test_descriptors_give_the_same_bits(tokens: int, channels: int, out: int, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Tiles over every edge; where they can be used, they are."""
    made = []
    real = gemm._descriptors
    monkeypatch.setattr(gemm, "_descriptors", lambda *a: made.append(real(*a)) or made[-1])
    weight = make_weight(out, channels, 16)
    q = quantized(make_tokens(tokens, channels, torch.float16, large=25.0), weight, 64)
    y = gemm.gemm(q, weight, config=SMALL)
    for config in (SMALL_TMA, configs.with_tma(IN_PARTS)):
        assert torch.equal(y, gemm.gemm(q, weight, config=config))
    assert [found is not None for found in made] == [False, True, True]


def test_rows_at_odd_addresses_have_no_descriptors() -> None:
    memory = torch.zeros(4 * 64 + 1, dtype=torch.int8)
    aligned = memory[: 4 * 64].view(4, 64)
    shifted, narrow = memory[1:].view(4, 64), torch.zeros(4, 40, dtype=torch.int8)
    assert gemm._descriptors(aligned, aligned, SMALL_TMA, 64) is not None
    for x, w in ((shifted, aligned), (aligned, shifted), (narrow, narrow), (aligned[:0], aligned)):
        assert gemm._descriptors(x, w, SMALL_TMA, 64) is None


@pytest.mark.parametrize("config", [SMALL, IN_PARTS], ids=str)
def test_the_largest_sums(config: dict[str, int]) -> None:
    """Of a block, as an int32 and as the mantissa of a float."""
    codes = torch.full((2, 12_928), 127, dtype=torch.int8)
    codes[1] = -127
    y = gemm.gemm(ones(codes), MixedWeight(codes[:1], torch.ones(1)), dtype=torch.float32, config=config)  # fmt: skip
    exact = 12_928.0 * 127**2
    torch.testing.assert_close(y, torch.tensor([[exact], [-exact]]), rtol=1e-5, atol=0.0)


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
    q.scale[0, 2] = float("nan")
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
