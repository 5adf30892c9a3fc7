"""The activation quantizer in the interpreter: codes, scales, outliers and counts equal the reference bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from int8conv.errors import ArgumentError
from int8conv.kernels.gpu import quantize, reference
from int8conv.kernels.gpu.prologue import Prologue
from int8conv.kernels.gpu.quantize import QuantizedTokens

from .tensors import HALVES, make_tokens

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # to infinity


def outlier_channels(channels: int, k: int) -> dict[str, Tensor]:
    if not k:
        return {}
    g = torch.Generator().manual_seed(5)
    index = torch.randperm(channels, generator=g)[:k].sort().values.to(torch.int32)
    marks = torch.zeros(channels, dtype=torch.int8).index_fill_(0, index.long(), 1)
    return {"index": index, "is_outlier": marks}


def check_equal(found: QuantizedTokens, expected: QuantizedTokens) -> None:
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.scale, expected.scale)
    assert found.dtype == expected.dtype
    assert found.block == expected.block
    assert (found.outliers is None) == (expected.outliers is None)
    assert found.outliers is None or torch.equal(found.outliers, expected.outliers)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize(
    ("tokens", "channels", "k"),
    [
        (1, 64, 0),
        (3, 1, 0),
        (3, 1, 1),
        (5, 130, 16),
        (2, 257, 257),
        (4, 4096, 48),
        (2, 6144, 16),
        (3, 9001, 32),
    ],
)
def test_bit_exact(tokens: int, channels: int, k: int, block: int, dtype: torch.dtype) -> None:
    x = make_tokens(tokens, channels, dtype, large=30.0)
    options = outlier_channels(channels, k)
    found = quantize.quantize(x, **options, block=block)
    check_equal(found, reference.quantize(x, **options, block=block))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("value", [1e-7, 5.9, 6.0, 65504.0, -65504.0])
def test_constant_tokens(value: float, dtype: torch.dtype) -> None:
    x = torch.full((2, 300), value).to(dtype)
    check_equal(quantize.quantize(x), reference.quantize(x))


@pytest.mark.parametrize(("tokens", "channels"), [(1, 1), (5, 130), (3, 9001)])
def test_values_from_the_threshold_on_are_counted(tokens: int, channels: int) -> None:
    x = make_tokens(tokens, channels, torch.float16, large=30.0)
    x[-1] = 1.0  # a token without any
    options = outlier_channels(channels, channels // 40)
    found, expected = (torch.zeros(2 + channels, dtype=torch.int64) for _ in range(2))
    for _ in range(2):
        quantize.quantize(x, **options, threshold=6.0, counts=found)
        reference.quantize(x, **options, threshold=6.0, counts=expected)
    assert torch.equal(found, expected)
    assert found[0] == 2 * tokens
    assert tokens == 1 or 0 < found[1] < 2 * tokens
    quantize.quantize(x, **options, counts=found)  # no threshold
    assert torch.equal(found, expected)


def test_halves_round_to_even() -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, -2.5, -0.5, 0.0]]).half()
    assert quantize.quantize(x).codes.tolist() == [[127, 0, 2, -2, 0, 0]]


def test_every_sixteen_bit_value_gets_the_references_code() -> None:
    """All finite float16 values, beside a largest one: the whole rounding function at once."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    x = patterns[patterns.isfinite()].reshape(1, -1)
    check_equal(quantize.quantize(x), reference.quantize(x))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, where the interpreter casts NaN
def test_nan_and_infinity_reach_the_scale_of_their_block_only() -> None:
    x = make_tokens(3, 200, torch.float16)
    x[0, 7], x[2, 150] = float("nan"), float("inf")
    counts = torch.zeros(202, dtype=torch.int64)
    found = quantize.quantize(x, threshold=30000.0, counts=counts)
    assert found.scale.isfinite().tolist() == [[False, True, True], [True, True, False]]
    assert counts.nonzero().flatten().tolist() == [0, 1, 152]


def test_only_large_values_coarsen_and_only_their_block() -> None:
    x = make_tokens(2, 256, torch.float16)
    before = quantize.quantize(x)
    x[0, 3] = 500.0
    after = quantize.quantize(x)
    assert torch.equal(before.codes[:, 128:], after.codes[:, 128:])
    assert after.scale[0, 0] > 100 * after.scale[1, 0]


def test_outlier_channels_set_no_scale() -> None:
    x = make_tokens(2, 256, torch.float16)
    options = outlier_channels(256, 16)
    before = quantize.quantize(x, **options)
    x[:, options["index"].long()] = 1000.0
    after = quantize.quantize(x, **options)
    assert torch.equal(before.scale, after.scale)
    assert torch.equal(before.codes, after.codes)
    assert (after.outliers == 1000).all()  # type: ignore[union-attr]


def fused(name: str, x: Tensor) -> Prologue:
    g = torch.Generator().manual_seed(9)
    gain, shift = (torch.randn(x.shape[1], generator=g).to(x.dtype) for _ in range(2))
    other = (3 * torch.randn(x.shape, generator=g)).to(x.dtype)
    return {
        "rms": Prologue(norm="rms", weight=gain, eps=1e-5),
        "rms, gain not rounded": Prologue(norm="rms", weight=1 + 0.001 * gain.float(), eps=1e-6),
        "layer": Prologue(norm="layer", weight=gain, bias=shift, eps=1e-5),
        "layer, plain": Prologue(norm="layer", eps=1e-5),
        "silu x up": Prologue(activation="silu", times=other),
        "gelu": Prologue(activation="gelu"),
        "gelu_tanh x up": Prologue(activation="gelu_tanh", times=other),
        "relu": Prologue(activation="relu"),
    }[name]  # fmt: skip


FUSED = ["rms", "rms, gain not rounded", "layer", "layer, plain", "silu x up", "gelu", "gelu_tanh x up", "relu"]  # fmt: skip


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize(("tokens", "channels"), [(3, 200), (2, 5000)])
def test_fused(name: str, tokens: int, channels: int, dtype: torch.dtype) -> None:
    """The 16-bit result is within one unit in the last place; what is quantized is that result, bit for bit."""
    x = make_tokens(tokens, channels, dtype, large=20.0)
    prologue = fused(name, x)
    found = quantize.apply(x, prologue)
    expected = reference.apply(x, prologue)
    step = 2.0**-10 if dtype == torch.float16 else 2.0**-7
    assert ((found.double() - expected.double()).abs() <= 2 * step * expected.double().abs() + 2.0**-24).all()  # fmt: skip
    assert (found == expected).double().mean() > 0.98
    options = outlier_channels(channels, 16)
    check_equal(
        quantize.quantize(x, prologue, **options),
        reference.quantize(found, **options),
    )


def test_rows_may_be_part_of_a_wider_matrix() -> None:
    both = make_tokens(3, 600, torch.float16, large=20.0)
    gate, up = both.chunk(2, dim=1)
    found = quantize.quantize(gate, Prologue(activation="silu", times=up))
    copied = Prologue(activation="silu", times=up.contiguous())
    check_equal(found, quantize.quantize(gate.contiguous(), copied))


def test_no_tokens() -> None:
    assert quantize.quantize(torch.empty(0, 64).half()).codes.shape == (0, 64)


def test_bad_arguments_are_named() -> None:
    x = torch.zeros(2, 64).half()
    with pytest.raises(ArgumentError, match=r"dtype of x: expected float16 or bfloat16, found torch.float32"):  # fmt: skip
        quantize.quantize(x.float())
    with pytest.raises(ArgumentError, match="stride of x's last axis"):
        quantize.quantize(x.t())
    with pytest.raises(ArgumentError, match="shape of times"):
        quantize.quantize(x, Prologue(activation="silu", times=x[:1]))
    with pytest.raises(ArgumentError, match="index and is_outlier"):
        quantize.quantize(x, index=torch.zeros(1, dtype=torch.int32))
