"""Attention of a GPU's backend, on the CPU: prompts in parts of any size, steps by the kernel, caches of 16 and 8 bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from int8conv.runtime.backends.gpu import attention
from int8conv.runtime.backends.gpu.attention import DeviceAttention, normed, tensors_of
from int8conv.runtime.decoder.attention_spec import AttentionSpec, alibi_slopes
from int8conv.runtime.decoder.cache import Quantized
from int8conv.runtime.decoder.norms import NormWeights, normalised
from int8conv.runtime.decoder.quantized_cache import quantize_heads

from ..test_torch_attention import truth
from .conftest import CPU

pytestmark = pytest.mark.usefixtures("few_programs")

SPEC = AttentionSpec(0, 4, 2, 16, 0.25)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {}, "a head each": {"kv_heads": 4}, "window": {"window": 3}, "wide window": {"window": 99}, "alibi": {"alibi": 0.5},
    "cap": {"softcap": 1.5}, "cap, alibi, window": {"softcap": 1.5, "alibi": 1.0, "window": 4},
    "sinks, window": {"sinks": torch.tensor([-1.0, 2.0, 0.5, 5.0]), "window": 4},
}  # fmt: skip


def inputs(spec: AttentionSpec, tokens: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries ``[b, t, h, d]`` as a kernel leaves them, and a cache with room, in which the rest is NaN."""
    g = torch.Generator().manual_seed(0)
    q = torch.randn(2, tokens, spec.heads, spec.size, generator=g).half()
    k, v = torch.randn(2, 2, spec.kv_heads, end + 3, spec.size, generator=g).half()
    k[:, :, end:] = v[:, :, end:] = float("nan")
    return q, k, v


def expected(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, past: int) -> Tensor:
    """``[b, t, h * d]``."""
    y = truth(q.transpose(1, 2), k, v, spec, torch.arange(past, past + q.shape[1]))
    return y.transpose(1, 2).flatten(2)


def close(found: Tensor, wanted: Tensor) -> None:
    """Shares and result are rounded to float16."""
    assert found.shape == wanted.shape
    assert found.dtype == torch.float16
    assert (found.double() - wanted).abs().max() <= 4e-3 * wanted.abs().max()


@pytest.mark.parametrize("past", [0, 4])
@pytest.mark.parametrize("variant", VARIANTS)
def test_prompts(variant: str, past: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, two tokens at a time, and one."""
    spec = replace(SPEC, **VARIANTS[variant])
    q, k, v = inputs(spec, 5, past + 5)
    wanted = expected(q, k, v, spec, past)
    across = 2 * spec.heads if spec.alibi or spec.explicit else spec.heads // spec.kv_heads
    for scores in (1 << 26, 2 * across * (past + 5), 1):
        monkeypatch.setattr(attention, "SCORES_ON_GPU", scores)
        close(DeviceAttention(CPU).prompt(q, k, v, past, spec), wanted)


@pytest.mark.parametrize("variant", ["plain", "a head each"])
def test_later_parts_of_a_prompt_have_no_dense_mask(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Where FlashAttention runs, which aligns causal attention with the last position."""
    asked: list[tuple[int, int]] = []

    def lower_right(tokens: int, end: int) -> Tensor:
        asked.append((tokens, end))
        return real(tokens, end)

    def no_parts(*arguments: object) -> Tensor:
        raise AssertionError("a dense mask")

    real = attention.causal_lower_right
    monkeypatch.setattr(attention, "causal_lower_right", lower_right)
    monkeypatch.setattr(attention, "can_use_flash_attention", lambda params: True)
    monkeypatch.setattr(attention, "_part", no_parts)
    spec = replace(SPEC, **VARIANTS[variant])
    for past in (0, 4):
        q, k, v = inputs(spec, 5, past + 5)
        close(DeviceAttention(CPU).prompt(q, k, v, past, spec), expected(q, k, v, spec, past))
    assert asked == [(5, 9)]


def quantized(x: Tensor) -> tuple[Quantized, Tensor]:
    """In 8 bits, and the values that it stands for."""
    codes, scale = quantize_heads(x.nan_to_num(7))
    return Quantized(codes.to(torch.int8), scale), codes * scale.float()


@pytest.mark.parametrize("widened", [1, 1 << 25])
@pytest.mark.parametrize(
    "variant", ["plain", "window", "alibi", "cap, alibi, window", "sinks, window"]
)
def test_prompts_with_an_int8_cache(variant: str, widened: int, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Widened a head at a time, or all; of a window, what it sees."""
    monkeypatch.setattr(attention, "WIDENED_ON_GPU", widened)
    spec = replace(SPEC, **VARIANTS[variant])
    for past in (0, 6):
        q, k, v = inputs(spec, 4, past + 4)
        (keys, k), (values, v) = quantized(k), quantized(v)
        found = DeviceAttention(CPU).prompt(q, keys, values, past, spec)
        close(found, expected(q, k, v, spec, past))


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("variant", ["plain", "cap, alibi, window", "sinks, window"])
def test_a_token_of_each_sequence(variant: str, narrow: bool) -> None:
    """By the kernel, each after its own length, and added to the cache."""
    spec = replace(SPEC, **VARIANTS[variant])
    q, k, v = inputs(spec, 1, 9)
    new = [torch.stack([x[0, :, 8], x[1, :, 3]]).flatten(1) for x in (k, v)]
    stored: list[Any] = [k.clone(), v.clone()]
    if narrow:
        (keys, k), (values, v) = quantized(k), quantized(v)
        stored = [keys, values]
    for cache in (x.codes for x in stored) if narrow else stored:
        cache[0, :, 8] = cache[1, :, 3] = 0
    filled = torch.tensor([9, 4], dtype=torch.int32)
    qkv = (q[:, 0].flatten(1), new[0], new[1])
    found = DeviceAttention(CPU).step(qkv, None, stored[0], stored[1], filled, spec)
    wanted = truth(q.transpose(1, 2), k, v, spec, torch.tensor([[8], [3]]))[:, :, 0]
    close(found, wanted)


def test_slopes_are_made_once() -> None:
    device = DeviceAttention(CPU)
    assert device.slopes(SPEC) is None
    spec = replace(SPEC, alibi=0.5)
    first = device.slopes(spec)
    assert first is not None
    torch.testing.assert_close(first, alibi_slopes(4) * 0.5)
    assert device.slopes(replace(spec, layer=3)) is first
    assert device.slopes(replace(spec, alibi=1.0)) is not first
    other = device.slopes(replace(spec, heads=8))
    assert other is not None
    assert len(other) == 8


def test_what_kernels_take_of_a_cache() -> None:
    _, k, v = inputs(SPEC, 1, 4)
    assert tensors_of(k, v) == (k, v, None)
    (keys, _), (values, _) = quantized(k), quantized(v)
    assert tensors_of(keys, values) == (keys.codes, values.codes, (keys.scale, values.scale))
    with pytest.raises(AssertionError):
        tensors_of(k, values)


@pytest.mark.parametrize("by_head", [True, False])
@pytest.mark.parametrize("rms", [True, False])
def test_norms_of_queries_and_keys(rms: bool, by_head: bool) -> None:
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).half()
    size = 16 if by_head else 64
    gain = torch.rand(size, generator=torch.Generator().manual_seed(1)).half()
    norm = NormWeights(rms, 1e-5, gain, None if rms else gain)
    found = normed(x, norm, 16, by_head)
    wanted = normalised(x.view(3, -1, size), norm).view(3, 64)
    torch.testing.assert_close(found, wanted, rtol=2e-3, atol=2e-3)
    assert normed(x, None, 16, by_head) is x
