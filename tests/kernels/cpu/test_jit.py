"""The compiled kernels against float64 truth: rows and tokens of every remainder, both lengths, both 16-bit types."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from int8conv.kernels import reference
from int8conv.kernels.cpu import jit
from int8conv.kernels.cpu.jit_linear import LONG
from int8conv.kernels.dispatch import compiled_tokens, dense_linear, mixed_linear
from int8conv.kernels.weight import MixedWeight

from ..mixed_weights import check, dense, make_weight

HALVES = [torch.float16, torch.bfloat16]


def activations(tokens: int, in_features: int) -> Tensor:
    return torch.randn(tokens, in_features, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("tokens", [1, 2, 3, 9])
@pytest.mark.parametrize("out", [1, 3, 4, 10])
@pytest.mark.parametrize(("in_features", "k"), [(1, 0), (33, 16), (256, 0), (LONG + 5, 16), (LONG, 32)])  # fmt: skip
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_mixed(tokens: int, out: int, in_features: int, k: int, dtype: torch.dtype) -> None:
    weight = make_weight(out, in_features, k)
    if weight.outlier_weight is not None:
        weight = replace(weight, outlier_weight=weight.outlier_weight.to(dtype))
    x = activations(tokens, in_features)
    check(jit.w8a16(x, weight), x.double() @ dense(weight).t(), x, weight)


@pytest.mark.parametrize("tokens", [1, 3, 4, 9])
@pytest.mark.parametrize("shape", [(1, 1), (7, 40), (33, 129)])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_dense(tokens: int, shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[0, 0] = 2.0**-20  # float16: subnormal
    x = activations(tokens, shape[1])
    magnitude = x.abs().double() @ weight.abs().double().t()
    error = (jit.dense(x, weight).double() - x.double() @ weight.double().t()).abs()
    assert (error <= 2e-6 * magnitude).all()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_16_bit_number(dtype: torch.dtype) -> None:
    """All finite ones, as a weight of one column."""
    numbers = torch.arange(1 << 16).to(torch.uint16).view(dtype)
    numbers = numbers[numbers.isfinite()][:, None].contiguous()
    found = jit.dense(torch.ones(1, 1), numbers)
    assert torch.equal(found[0], numbers[:, 0].float())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_shows_in_its_token_alone(bad: float) -> None:
    weight = make_weight(9, 64)
    x = activations(3, 64)
    expected = jit.w8a16(x, weight)
    x[1, 5] = bad
    found = jit.w8a16(x, weight)
    assert not found[1, 2:].isfinite().any()
    assert torch.equal(found[[0, 2]], expected[[0, 2]])


def test_the_mixed_linear_takes_it_for_few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, bias = make_weight(12, 64, 16), torch.randn(12).half()
    used: list[int] = []
    real = jit.w8a16
    monkeypatch.setattr(jit, "w8a16", lambda x, w: used.append(len(x)) or real(x, w))
    most = compiled_tokens()
    for tokens in (1, most, most + 1):
        x = activations(tokens, 64)
        expected = reference.w8a16(x, weight) + bias
        torch.testing.assert_close(
            mixed_linear(x, weight, bias, mode="w8a16"), expected, rtol=1e-5, atol=1e-5
        )
        mixed_linear(x, weight, mode="w8a8")
    assert used == [1, most]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_activations_of_16_bits(dtype: torch.dtype) -> None:
    weight = make_weight(12, 64, 16)
    x = activations(2, 64).to(dtype)
    expected = (x.double() @ dense(weight).t()).to(dtype)
    torch.testing.assert_close(mixed_linear(x, weight), expected)


def test_without_numba_the_results_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = make_weight(40, 96, 16), activations(1, 96)
    half = torch.randn(40, 96).half()
    with_numba = mixed_linear(x, weight), dense_linear(x, half)
    monkeypatch.setattr(jit, "available", lambda: False)
    monkeypatch.setattr(jit, "w8a16", None)
    monkeypatch.setattr(jit, "dense", None)
    torch.testing.assert_close(mixed_linear(x, weight), with_numba[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dense_linear(x, half), with_numba[1], rtol=1e-5, atol=1e-5)


def test_it_can_be_switched_off_and_is_not_imported_unused() -> None:
    code = "import sys; from int8conv.kernels.cpu import jit; print(jit.available(), 'numba' in sys.modules)"
    for value, expected in (("0", "False False"), ("1", "True False")):
        done = subprocess.run(
            [sys.executable, "-c", code], env={"INT8CONV_JIT": value, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == expected


def test_compiling_is_told_once_and_code_on_disk_is_not_compiled(tmp_path: Path) -> None:
    code = """
import torch
from int8conv.kernels.cpu import jit
jit.on_compile(lambda: print("compiling"))
for kind in (torch.float16, torch.bfloat16):
    jit.dense(torch.ones(1, 8), torch.ones(2, 8, dtype=kind))
"""
    for expected in ("compiling\n", ""):
        done = subprocess.run(
            [sys.executable, "-c", code], env={"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout == expected


def test_several_threads_at_once() -> None:
    """Numba's own pool would end the process."""
    weight = make_weight(400, 300, 16)
    inputs = [activations(1, 300) * n for n in range(8)]
    expected = [jit.w8a16(x, weight) for x in inputs]
    with ThreadPoolExecutor(4) as executor:
        for _ in range(10):
            found = list(executor.map(lambda x: jit.w8a16(x, weight), inputs))
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_memory_that_is_read_only() -> None:
    codes = np.frombuffer(bytes(range(64)), np.int8).reshape(4, 16)
    assert not codes.flags.writeable
    with pytest.warns(UserWarning, match="not writable"):
        weight = MixedWeight(torch.from_numpy(codes), torch.ones(4))
    x = activations(1, 16)
    check(jit.w8a16(x, weight), x.double() @ dense(weight).t(), x, weight)
