"""What the dispatcher does around an implementation, and which it takes where: every crossover from both sides."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from int8conv.errors import ArgumentError
from int8conv.kernels import dispatch, reference
from int8conv.kernels.cpu import int16, integer, jit, widened
from int8conv.kernels.crossovers import (
    COMPILED_TOKENS,
    COMPILED_TOKENS_WITHOUT_VNNI,
    TOKENS_AT_ONCE,
    W8A16_TOKENS,
)
from int8conv.kernels.dispatch import MODES, dense_linear, implementation, mixed_linear, mode_for

from .mixed_weights import make_weight


def activations(tokens: int, in_features: int = 64) -> Tensor:
    return torch.randn(tokens, in_features, generator=torch.Generator().manual_seed(1))


def test_crossovers() -> None:
    """The figures that docs and the footprint stand on."""
    assert (COMPILED_TOKENS, W8A16_TOKENS, TOKENS_AT_ONCE) == (4, 16, 128)
    assert COMPILED_TOKENS_WITHOUT_VNNI == W8A16_TOKENS


def test_few_tokens_take_w8a16_and_many_w8a8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where that is faster: without int8 dot products, it is not."""
    monkeypatch.setattr(integer, "available", lambda: False)
    assert {mode_for(tokens) for tokens in (1, 16, 17, 1000)} == {"w8a16"}
    monkeypatch.setattr(integer, "available", lambda: True)
    assert [mode_for(tokens) for tokens in (1, 16, 17, 1000)] == ["w8a16", "w8a16", "w8a8", "w8a8"]
    weight = make_weight(32, 64)
    for tokens in (16, 17):
        x, mode = activations(tokens), mode_for(tokens)
        y = mixed_linear(x, weight)
        assert torch.equal(y, mixed_linear(x, weight, mode=mode))
        other = [each for each in MODES if each != mode]
        assert not torch.equal(y, mixed_linear(x, weight, mode=other[0]))


@pytest.mark.parametrize("numba", [True, False])
@pytest.mark.parametrize("vnni", [True, False])
def test_which_implementation(numba: bool, vnni: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of 16-bit integers are for those who ask for no mode: W8A16 is more exact, and W8A8 less."""
    monkeypatch.setattr(jit, "available", lambda: numba)
    monkeypatch.setattr(jit, "multiplies_int16", lambda: numba)
    monkeypatch.setattr(integer, "available", lambda: vnni)
    weight, plain = make_weight(8, 64), integer if vnni else widened
    for tokens in (0, 1, 4, 5, 16, 17, 200):
        x = activations(tokens)
        few = numba and 1 <= tokens <= (4 if vnni else 16)
        assert implementation(x, weight, "w8a16") is (jit.w8a16 if few else plain.w8a16)
        assert implementation(x, weight, "w8a8") is plain.w8a8
        fastest = implementation(x, weight, None)
        if tokens <= 16:
            assert fastest is implementation(x, weight, "w8a16")
        elif vnni:
            assert fastest is integer.w8a8
        else:
            assert fastest is (int16.linear if numba else widened.w8a16)


@pytest.mark.skipif(not jit.available(), reason="needs numba")
def test_weights_that_compiled_code_leaves_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    real = jit.dense
    monkeypatch.setattr(jit, "dense", lambda x, w: used.append(len(x)) or real(x, w))
    monkeypatch.setattr(integer, "available", lambda: True)
    for tokens in (0, 1, 4, 5):
        for weight in (torch.ones(4, 8), torch.ones(8, 4).half().t(), torch.ones(4, 8).half()):
            assert dense_linear(torch.ones(tokens, 8), weight).shape == (tokens, 4)
    dense_linear(torch.ones(1, 8).half(), torch.ones(4, 8).bfloat16())
    assert used == [1, 4]


@pytest.mark.parametrize("mode", [None, *MODES])
def test_many_tokens_pass_in_parts(mode: dispatch.Mode | None, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Of one size, each at most ``TOKENS_AT_ONCE``; the result is that of one call, and so is the mode."""
    weight, bias, x = make_weight(12, 64, 16, threshold=2.0), torch.randn(12), activations(130)
    sizes: list[int] = []
    name = mode or "w8a16"
    monkeypatch.setattr(integer, "available", lambda: False)
    monkeypatch.setattr(jit, "multiplies_int16", lambda: False)
    real = getattr(widened, name)
    monkeypatch.setattr(widened, name, lambda x, w: sizes.append(len(x)) or real(x, w))
    found = mixed_linear(x, weight, bias, mode=mode)
    assert sizes == [65, 65]
    torch.testing.assert_close(found, getattr(reference, name)(x, weight) + bias, rtol=1e-5, atol=1e-5)  # fmt: skip
    mixed_linear(x[:128], weight, mode=mode)
    assert sizes == [65, 65, 128]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_activations_round_once(dtype: torch.dtype) -> None:
    weight, bias = make_weight(32, 64, 16), torch.randn(32).half()
    for tokens in (1, 5, 130):
        x = activations(tokens).to(dtype)
        y = mixed_linear(x, weight, bias, mode="w8a16")
        assert y.dtype == dtype
        assert torch.equal(y, mixed_linear(x.float(), weight, bias, mode="w8a16").to(dtype))


@pytest.mark.parametrize("tokens", [1, 5, 130])
def test_the_bias_is_added(tokens: int) -> None:
    weight, bias, x = make_weight(32, 64, 16), torch.randn(32).half(), activations(tokens)
    for mode in MODES:
        y = mixed_linear(x, weight, mode=mode)
        assert torch.equal(mixed_linear(x, weight, bias, mode=mode), y + bias.float())


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


def test_bad_arguments_are_named() -> None:
    weight = make_weight(4, 8)
    with pytest.raises(ArgumentError, match=r"last axis of x: expected 8, found 9"):
        mixed_linear(torch.zeros(1, 9), weight)
    with pytest.raises(ArgumentError, match="mode: expected w8a8 or w8a16, found 'w4'"):
        mixed_linear(torch.zeros(1, 8), weight, mode="w4")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("block", [1, 100, 1 << 19])
def test_a_dense_linear_equals_one_with_a_widened_weight(
    dtype: torch.dtype, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(widened, "_BLOCK_ELEMENTS", block)
    g = torch.Generator().manual_seed(0)
    x, bias = torch.randn(2, 3, 40, generator=g), torch.randn(7, generator=g)
    weight = torch.randn(7, 40, generator=g).to(dtype)
    expected = F.linear(x, weight.float(), bias)
    torch.testing.assert_close(dense_linear(x, weight, bias), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dense_linear(x, weight), expected - bias, rtol=1e-5, atol=1e-5)


def test_what_a_prompt_takes_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[int, object]] = []
    monkeypatch.setattr(
        dispatch, "implementation", lambda x, w, mode: used.append((len(x), mode)) or widened.w8a16
    )
    dispatch.prepare()
    assert used == [(17, None)]
