"""Kernels joined to the mixed linear, in the interpreter, against the reference of the other implementations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from int8conv.kernels import reference as reference_linear
from int8conv.kernels.dispatch import MODES, Mode
from int8conv.kernels.gpu import linear, reference
from int8conv.kernels.gpu.gemm import gemm_kernel
from int8conv.kernels.gpu.linear import Operand
from int8conv.kernels.gpu.prologue import Prologue
from int8conv.kernels.gpu.quantize import quantize_kernel
from int8conv.kernels.weight import MixedWeight

from .compiling import recording
from .tensors import HALVES, check, dense, make_tokens, make_weight


def magnitude(x: Tensor, weight: object) -> Tensor:
    return x.double().abs() @ dense(weight).abs().t()  # type: ignore[arg-type]


def product(x: Tensor, weight: MixedWeight, mode: Mode) -> Tensor:
    """float64 ``[tokens, out]``, from activations in blocks in W8A8 (a CPU has a scale per token there)."""
    if mode == "w8a16":
        return reference_linear.w8a16(x.float(), weight).double()
    block = 64 if weight.activation_bits == 16 else 128
    q = reference.quantize(x, index=weight.outlier_index, is_outlier=weight.is_outlier, block=block)
    return reference.gemm(q, weight, dtype=torch.float64)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tokens", [1, 5, 70])
def test_equals_the_reference_implementation(tokens: int, mode: Mode, dtype: torch.dtype) -> None:
    """The same activations and codes, bit for bit; sums differ by their rounding alone."""
    weight = make_weight(40, 200, 16, dtype=dtype)
    x, bias = make_tokens(tokens, 200, dtype, large=30.0), torch.randn(40).to(dtype)
    residual = make_tokens(tokens, 40, dtype, seed=4)
    y = linear.linear(Operand(x), weight, bias, residual, mode=mode)
    expected = product(x, weight, mode) + bias.double() + residual.double()
    check(y, expected, magnitude(x, weight) + 10)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tokens", [2, 70])
def test_gated_feed_forward(tokens: int, mode: Mode) -> None:
    """Norm, gate and up, activation, down: as many kernels as the mode needs, the same numbers."""
    wide = make_weight(2 * 48, 64, 16)
    down = replace(make_weight(64, 48, 16), activation_bits=16)  # as in every gated model
    x, gain = make_tokens(tokens, 64, torch.float16), torch.rand(64).half()
    norm = Prologue(norm="rms", weight=gain, eps=1e-5)
    inner = linear.gated(Operand(x, norm), wide, activation="silu", mode=mode)
    y = linear.linear(inner, down, residual=x, mode=mode)
    normed = reference.apply(x, norm)
    gate, up = product(normed, wide, mode).to(normed.dtype).chunk(2, 1)
    gates = reference.apply(gate.contiguous(), Prologue(activation="silu", times=up.contiguous()))
    assert (inner.value().double() - gates.double()).abs().max() <= 2e-3 * gates.abs().max()
    expected = x.double() + product(inner.value(), down, mode)
    torch.testing.assert_close(y.double(), expected, atol=4e-3, rtol=2e-3)


def test_mode_follows_the_number_of_tokens() -> None:
    device = torch.device("cpu")
    modes = [linear.mode_for(tokens, device) for tokens in (1, 8, 1000)]
    assert modes == ["w8a16", "w8a16", "w8a8"]


def test_a_prompt_reads_each_weight_once_in_int8_products() -> None:
    """A layer of Llama-3.1-8B, 2048 tokens, as the converter leaves it by default: ``down`` is heavy-tailed."""

    def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def weight(out: int, channels: int, *, heavy: bool = False) -> MixedWeight:
        return MixedWeight(
            meta(out, channels, dtype=torch.int8), meta(out, dtype=torch.float32), meta(48, dtype=torch.int32),
            meta(out, 48), None if heavy else 12.0, activation_bits=16 if heavy else 8,
        )  # fmt: skip

    weights = [weight(6144, 4096), weight(4096, 4096), weight(28672, 4096), weight(4096, 14336, heavy=True)]  # fmt: skip
    qkv, o, gate_up, down = weights
    x = meta(2048, 4096)
    norm = Prologue(norm="rms", weight=meta(4096), eps=1e-5)
    with recording(90) as launches:
        linear.linear(Operand(x, norm), qkv)
        h = linear.linear(Operand(meta(2048, 4096)), o, residual=x)
        inner = linear.gated(Operand(h, norm), gate_up, activation="silu")
        linear.linear(inner, down, residual=h)
    kernels = [launched.kernel for launched in launches]
    assert kernels == [quantize_kernel, gemm_kernel] * 4
    for each in weights:
        assert sum(any(a is each.codes for a in launched.args) for launched in launches) == 1
    blocks = [launched.meta["SCALE_BLOCK"] for launched in launches]
    assert blocks == [128, 128, 128, 128, 128, 128, 64, 64]
