"""Device functions, each in a kernel of its own in the interpreter: exact where they promise it, for every value there is."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from int8conv.kernels.gpu.launch import launch
from int8conv.kernels.gpu.primitives import (
    activate,
    dot16,
    halve_codes,
    narrow,
    rint,
    tanh,
    widen_codes,
)

from .tensors import HALVES

CODES = torch.arange(-128, 128).to(torch.int8)


@triton.jit
def unary(x, out, KIND: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    value = tl.load(x + i)
    if KIND == "rint":
        value = rint(value)
    elif KIND == "widen_codes":
        value = widen_codes(value)
    elif KIND == "halve_codes":
        value = halve_codes(value, out.dtype.element_ty)
    elif KIND == "narrow":
        value = narrow(value, out.dtype.element_ty)
    elif KIND == "tanh":
        value = tanh(value)
    else:
        value = activate(value, KIND)
    tl.store(out + i, value)


@triton.jit
def product(a, b, acc, out, N: tl.constexpr):
    i = tl.arange(0, N)
    at = i[:, None] * N + i[None, :]
    tl.store(out + at, dot16(tl.load(a + at), tl.load(b + at), tl.load(acc + at)))


def run(kind: str, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of as many values as a power of two."""
    out = torch.full(x.shape, float("nan"), dtype=dtype)
    launch(unary, (1,), x, out, KIND=kind, N=len(x))
    return out


def test_rounding_is_half_to_even_up_to_its_limit() -> None:
    x = torch.tensor([0.0, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.49999, -126.5, 2.0**22, -(2.0**22), 2.0**21 + 0.5, 1e-30, 0.49999997, -0.49999997, 99.75])  # fmt: skip
    assert run("rint", x).tolist() == x.round().tolist()


def test_codes_become_floats_exactly() -> None:
    assert torch.equal(run("widen_codes", CODES), CODES.float())
    for dtype in HALVES:
        assert torch.equal(run("halve_codes", CODES, dtype), CODES.to(dtype))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_narrowing_rounds_half_to_even(dtype: torch.dtype) -> None:
    """At ties of either parity and beside them, near zero, at the largest, and for what is not finite."""
    halves = (torch.randn(16, generator=torch.Generator().manual_seed(0)) * 100).to(dtype)
    bits = halves.view(torch.int16)
    between = (halves.double() + (bits + 1).view(dtype).double()) / 2
    values = torch.cat([
        halves.double(), between, between * (1 + 2.0**-20), between * (1 - 2.0**-20),
    ]).float()  # fmt: skip
    limits = torch.tensor([0.0, -0.0, 65504.0, 65519.0, 1e-7, -6e-8, 2e-38, torch.inf, -torch.inf, torch.finfo(dtype).max])  # fmt: skip
    x = F.pad(torch.cat([values, limits]), (0, 128 - 64 - len(limits)))
    found, expected = run("narrow", x, dtype), x.to(dtype)
    assert torch.equal(found, expected)
    assert run("narrow", torch.full((2,), float("nan")), dtype).isnan().all()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_product_has_float32_sums(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 16, 16, generator=g)).to(dtype)
    acc, out = torch.randn(16, 16, generator=g), torch.empty(16, 16)
    launch(product, (1,), a, b, acc, out, N=16)
    expected = acc.double() + a.double() @ b.double()
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


POINTS = torch.cat([torch.linspace(-12, 12, 121), torch.tensor([0.0, 1e-4, -1e-4, 80.0, -80.0, 100, -100])])  # fmt: skip


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # to infinity
@pytest.mark.parametrize(
    ("kind", "formula"),
    [
        ("tanh", torch.tanh), ("none", lambda x: x), ("silu", F.silu), ("relu", F.relu), ("gelu", F.gelu),
        ("relu2", lambda x: F.relu(x).square()),
        ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh")),
    ],
)  # fmt: skip
def test_functions_are_those_of_float64(kind: str, formula: object) -> None:
    assert len(POINTS) == 128
    expected = formula(POINTS.double())  # type: ignore[operator]
    error = (run(kind, POINTS).double() - expected).abs()
    assert (error <= 1e-6 * (1 + POINTS.double().abs())).all()


@pytest.mark.parametrize("kind", ["silu", "relu", "relu2", "gelu", "gelu_tanh"])
def test_nan_stays(kind: str) -> None:
    assert run(kind, torch.tensor([float("nan"), 1.0])).isnan().tolist() == [True, False]
