"""W8A16 for one and for few tokens in the interpreter, against float64."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from int8conv.errors import ArgumentError
from int8conv.kernels.gpu import configs, gemv, primitives, reference, skinny, workspace
from int8conv.kernels.gpu.prologue import Prologue
from int8conv.kernels.gpu.quantize import apply
from int8conv.kernels.weight import MixedWeight

from .tensors import HALVES, check, dense, make_tokens, make_weight

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # to infinity

GEMV = {"block_n": 16, "block_k": 256, "num_warps": 2}
"""Two slices, each of two parts of a pass."""
SPLIT = {"block_n": 32, "block_k": 64, "split": 3, "num_warps": 4, "num_stages": 2}
WHOLE = {**SPLIT, "split": 1}
SHAPES = [(64, 32), (7, 5), (33, 65), (1, 9), (300, 41)]


def truth(x: Tensor, weight: MixedWeight) -> tuple[Tensor, Tensor]:
    full = dense(weight)
    return x.double() @ full.t(), x.double().abs() @ full.t().abs()


@triton.jit
def widen_kernel(codes, wide, half, bfloat):
    i = tl.arange(0, 256)
    c = tl.load(codes + i)
    tl.store(wide + i, primitives.widen_codes(c))
    tl.store(half + i, primitives.halve_codes(c, tl.float16))
    tl.store(bfloat + i, primitives.halve_codes(c, tl.bfloat16))


def test_every_code_is_widened_exactly() -> None:
    codes = torch.arange(-128, 128).to(torch.int8)
    results = [torch.full((256,), float("nan")).to(d) for d in (torch.float32, *HALVES)]
    widen_kernel[(1,)](codes, *results)
    for result in results:
        assert torch.equal(result.double(), codes.double())


@triton.jit
def words_kernel(codes, values, half, bfloat, same):
    i = tl.arange(0, 64)
    j = tl.arange(0, 256)
    w = tl.load(codes + i)
    tl.store(half + j, tl.reshape(primitives.four_codes(w, tl.float16), (256,)))
    tl.store(bfloat + j, tl.reshape(primitives.four_codes(w, tl.bfloat16), (256,)))
    x = primitives.two_values(tl.load(values + tl.arange(0, 128)), tl.float16)
    tl.store(same + j, tl.reshape(x, (256,)))


def test_words_are_codes_and_values_in_order() -> None:
    codes = torch.arange(-128, 128).to(torch.int8)
    x = torch.randn(256, generator=torch.Generator().manual_seed(0)).half()
    half, bfloat, same = (torch.full((256,), float("nan")).to(d) for d in (*HALVES, torch.float16))
    words_kernel[(1,)](codes.view(torch.int32), x.view(torch.int32), half, bfloat, same)
    assert torch.equal(half.double(), codes.double())
    assert torch.equal(bfloat.double(), codes.double())
    assert torch.equal(same, x)


@triton.jit
def narrow_kernel(x, y):
    i = tl.program_id(0) * 1024 + tl.arange(0, 1024)
    tl.store(y + i, primitives.narrow(tl.load(x + i), y.dtype.element_ty))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_results_round_half_to_even(dtype: torch.dtype) -> None:
    """The interpreter's own cast to bfloat16 truncates; tests would hold kernels to a wrong rounding."""
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    x[:512] = (torch.arange(512) + 0.5) * 2.0**-8 + 1  # ties
    x[600:604] = torch.tensor([0.0, float("inf"), -float("inf"), -1e-30])
    y = torch.zeros(4096, dtype=dtype)
    narrow_kernel[(4,)](x, y)
    assert torch.equal(y, x.to(dtype))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("k", [0, 48])
@pytest.mark.parametrize(("channels", "out"), SHAPES)
@pytest.mark.parametrize(
    ("tokens", "config"),
    [(1, GEMV), (9, GEMV), (1, SPLIT), (2, SPLIT), (5, WHOLE), (33, SPLIT)],
    ids=["1 gemv", "9 gemv", "1 split", "2 split", "5 whole", "33 split"],
)
def test_against_float64(
    tokens: int, config: dict[str, int], channels: int, out: int, k: int, dtype: torch.dtype
) -> None:
    if k > channels or (config is GEMV and channels % 4):
        pytest.skip("more outliers than columns, or no words of codes")
    weight = make_weight(out, channels, k, dtype=dtype)
    x = make_tokens(tokens, channels, dtype, large=100.0)
    bias = torch.randn(out, generator=torch.Generator().manual_seed(2)).to(dtype)
    residual = make_tokens(tokens, out, dtype, seed=3)
    expected, magnitude = truth(x, weight)
    check(skinny.w8a16(x, weight, config=config), expected, magnitude)
    expected = expected + bias.double() + residual.double()
    magnitude = magnitude + bias.double().abs() + residual.double().abs()
    check(skinny.w8a16(x, weight, bias, residual, config=config), expected, magnitude)
    check(reference.w8a16(x, weight, bias, residual), expected, magnitude)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu"])
@pytest.mark.parametrize(
    ("tokens", "config"), [(1, GEMV), (3, GEMV), (3, SPLIT), (3, WHOLE)], ids=str
)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_gated(activation: str, tokens: int, config: dict[str, int], dtype: torch.dtype) -> None:
    weight = make_weight(2 * 45, 200, 16, dtype=dtype)
    x = make_tokens(tokens, 200, dtype)
    bias = torch.randn(90, generator=torch.Generator().manual_seed(2)).to(dtype)
    residual = make_tokens(tokens, 45, dtype, seed=3)
    gate, up = (truth(x, weight)[0] + bias.double()).chunk(2, dim=1)
    error, error_up = (truth(x, weight)[1] + bias.double().abs()).chunk(2, dim=1)
    expected = reference.ACTIVATIONS[activation](gate) * up + residual.double()
    magnitude = 1.2 * error * up.abs() + gate.abs() * error_up + residual.double().abs()
    options = {"activation": activation, "config": config}
    check(skinny.w8a16(x, weight, bias, residual, **options), expected, magnitude)
    check(reference.w8a16(x, weight, bias, residual, activation=activation), expected, magnitude)


@pytest.mark.parametrize("norm", ["rms", "rms, gain of 32 bits", "layer"])
def test_a_norm_in_the_prologue_is_that_of_a_launch_of_its_own(norm: str) -> None:
    """Bit for bit: for more programs than copies, for several tokens in rows of a wider matrix, in several blocks."""
    tokens, channels, out, k, dtype, activation = {
        "rms": (1, 68, 280, 16, torch.float16, "none"), "rms, gain of 32 bits": (gemv.NORM_TOKENS, 40, 9, 0, torch.bfloat16, "none"),
        "layer": (2, 1036, 12, 16, torch.float16, "silu"),
    }[norm]  # fmt: skip
    g = torch.Generator().manual_seed(5)
    weight = make_weight(out, channels, k, dtype=dtype)
    x = make_tokens(tokens, 2 * channels, dtype, large=30.0)[:, channels:]
    gain, shift = torch.rand(2, channels, generator=g).to(dtype)
    prologue = {
        "rms": Prologue("rms", gain, eps=1e-5), "rms, gain of 32 bits": Prologue("rms", gain.float() + 1, eps=1e-5),
        "layer": Prologue("layer", gain, shift, 1e-5),
    }[norm]  # fmt: skip
    assert skinny.takes_norm(x, prologue)
    config = {"block_n": 16, "block_k": 64, "num_warps": 1}
    found = skinny.w8a16(x, weight, norm=prologue, activation=activation, config=config)
    wanted = skinny.w8a16(apply(x, prologue), weight, activation=activation, config=config)
    assert torch.equal(found, wanted)


def test_which_norms_come_first() -> None:
    norm, x = Prologue("rms", eps=1e-5), torch.zeros(gemv.NORM_TOKENS, 64)
    assert skinny.takes_norm(x, norm)
    assert not skinny.takes_norm(torch.cat([x, x[:1]]), norm)
    assert not skinny.takes_norm(x[:, :62], norm)
    assert not skinny.takes_norm(x, Prologue(activation="silu"))
    assert not skinny.takes_norm(x, Prologue("rms", activation="silu"))
    with pytest.raises(ArgumentError, match="norm: expected none, found rms"):
        skinny.w8a16(make_tokens(1, 66, torch.float16), make_weight(8, 66), norm=norm)


@pytest.mark.parametrize("kernel", ["gemv", "skinny"])
def test_shipped_configurations(kernel: str) -> None:
    weight = make_weight(70, 1100, 16)
    rows = [row for g in configs.GENERATIONS for row in configs.shipped(kernel, g)]
    for row in {str(row): row for row in rows}.values():
        for tokens in (1, 9) if kernel == "gemv" else (2, 40):
            x = make_tokens(tokens, 1100, torch.float16)
            check(skinny.w8a16(x, weight, config=row), *truth(x, weight))


def test_the_order_of_channels_before_triton_3_7(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one changes nothing but the order of summation."""
    monkeypatch.setattr(gemv, "_PAIRS_FIRST", tl.constexpr(not gemv._PAIRS_FIRST.value))
    weight = make_weight(40, 300, 16)
    for tokens in (1, 9):
        x = make_tokens(tokens, 300, torch.float16)
        check(skinny.w8a16(x, weight, config=GEMV), *truth(x, weight))


def test_splitting_is_repeatable_and_leaves_counters_at_zero() -> None:
    weight = make_weight(100, 1000, 16)
    x = make_tokens(3, 1000, torch.float16)
    first = skinny.w8a16(x, weight, config=SPLIT)
    for _ in range(3):
        assert torch.equal(skinny.w8a16(x, weight, config=SPLIT), first)
    counters = workspace.of_streams[x.device, 0].counters
    assert counters is not None
    assert (counters == 0).all()


def test_every_column_an_outlier() -> None:
    weight = make_weight(16, 48, 48)
    for tokens, config in ((1, GEMV), (4, GEMV), (4, SPLIT)):
        x = make_tokens(tokens, 48, torch.float16, large=1000.0)
        check(skinny.w8a16(x, weight, config=config), *truth(x, weight))


@pytest.mark.parametrize("value", [0.0, 6e-8, 65504.0])
def test_extremes(value: float) -> None:
    weight = make_weight(16, 64)
    weight.scale.mul_(2.0**-16)
    for tokens in (1, 4):
        x = torch.full((tokens, 64), value).half()
        check(skinny.w8a16(x, weight), *truth(x, weight))


def test_rows_may_be_part_of_a_wider_matrix() -> None:
    weight = make_weight(16, 64, 16)
    wide = make_tokens(4, 128, torch.float16)
    y = skinny.w8a16(wide[:, 64:], weight)
    assert torch.equal(y, skinny.w8a16(wide[:, 64:].contiguous(), weight))
    odd = make_tokens(4, 65, torch.float16)[:, 1:]  # rows begin within a word of two values
    assert torch.equal(skinny.w8a16(odd, weight), skinny.w8a16(odd.contiguous(), weight))


def test_bad_arguments_are_named() -> None:
    weight = make_weight(15, 64)
    x = make_tokens(2, 64, torch.float16)
    with pytest.raises(ArgumentError, match="tokens: expected at most 64, found 65"):
        skinny.w8a16(make_tokens(65, 64, torch.float16), weight)
    with pytest.raises(ArgumentError, match="rows of a gated weight: expected even, found 15"):
        skinny.w8a16(x, weight, activation="silu")
    with pytest.raises(ArgumentError, match=r"shape of x: expected \[rows, 64\]"):
        skinny.w8a16(x[:, :32], weight)
    with pytest.raises(ArgumentError, match="shape of residual"):
        skinny.w8a16(x, weight, residual=x)
