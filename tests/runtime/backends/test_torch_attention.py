"""Attention in PyTorch against a loop over tokens in float64: masks, windows, ALiBi, caps, groups, caches of other dtypes, parts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from int8conv.runtime.backends import torch_attention
from int8conv.runtime.backends.torch_attention import attend, scores_bias
from int8conv.runtime.decoder.attention_spec import AttentionSpec, alibi_slopes
from int8conv.runtime.decoder.cache import Quantized
from int8conv.runtime.decoder.quantized_cache import quantize_heads

SPEC = AttentionSpec(0, 4, 2, 8, 0.3)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {}, "one key head": {"kv_heads": 1}, "a head each": {"kv_heads": 4}, "window": {"window": 3}, "window of 1": {"window": 1},
    "wide window": {"window": 99}, "alibi": {"alibi": 1.0}, "scaled alibi": {"alibi": 0.25}, "cap": {"softcap": 1.5},
    "cap, window": {"softcap": 1.5, "window": 3}, "cap, alibi, window": {"softcap": 1.5, "alibi": 1.0, "window": 4},
}  # fmt: skip


def inputs(spec: AttentionSpec, batch: int, tokens: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    q = torch.randn(batch, spec.heads, tokens, spec.size, generator=g)
    k, v = torch.randn(2, batch, spec.kv_heads, end, spec.size, generator=g)
    return q, k, v


def truth(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, positions: Tensor) -> Tensor:
    """Token by token, float64."""
    y = torch.zeros(q.shape, dtype=torch.float64)
    slopes = alibi_slopes(spec.heads).double() * spec.alibi
    for b in range(q.shape[0]):
        for t, position in enumerate((positions if positions.ndim == 1 else positions[b]).tolist()):
            first = 0 if spec.window is None else max(0, position + 1 - spec.window)
            for h in range(spec.heads):
                g = h // (spec.heads // spec.kv_heads)
                scores = (k[b, g, first : position + 1].double() @ q[b, h, t].double()) * spec.scale
                if spec.softcap is not None:
                    scores = spec.softcap * torch.tanh(scores / spec.softcap)
                scores -= slopes[h] * torch.arange(position - first, -1, -1)
                if spec.sinks is not None:  # one more position, whose value is zero
                    scores = torch.cat([scores, spec.sinks[h, None].double()])
                shares = scores.softmax(0)[: position + 1 - first]
                y[b, h, t] = shares @ v[b, g, first : position + 1].double()
    return y


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-6)


CALLS = {
    "a prompt": (torch.arange(7), 7),
    "a second part": (torch.arange(4, 7), 7),
    "a token": (torch.tensor([6]), 7),
    "tokens of two lengths": (torch.tensor([[6], [2]]), 7),
    "parts of two lengths": (torch.tensor([[4, 5, 6], [0, 1, 2]]), 7),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_against_float64(variant: str, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, token by token, and two tokens at a time."""
    spec = replace(SPEC, **VARIANTS[variant])
    positions, end = CALLS[call]
    q, k, v = inputs(spec, 2, positions.shape[-1], end)
    expected = truth(q, k, v, spec, positions)
    for scores in (1 << 22, 1, 2 * 4 * 2 * end):
        monkeypatch.setattr(torch_attention, "SCORES_AT_ONCE", scores)
        close(attend(q, k, v, spec, positions, {}), expected)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("variant", ["plain", "cap, alibi, window"])
@pytest.mark.parametrize("cache", ["int8", "float64", "float16"])
@pytest.mark.parametrize("widened", [1, 7 * 8 * 2, 1 << 18])
def test_a_cache_of_another_dtype(
    variant: str, call: str, cache: str, widened: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Widened a head at a time, or two, or all."""
    monkeypatch.setattr(torch_attention, "WIDENED_AT_ONCE", widened)
    spec = replace(SPEC, heads=6, kv_heads=3, **VARIANTS[variant])
    positions, end = CALLS[call]
    q, k, v = inputs(spec, 2, positions.shape[-1], end)
    if cache == "int8":
        parts = [quantize_heads(x) for x in (k, v)]
        stored: list[Any] = [Quantized(codes.char(), scale) for codes, scale in parts]
        k, v = (codes * scale.float() for codes, scale in parts)
    else:
        stored = [x.to(getattr(torch, cache)) for x in (k, v)]
        k, v = (x.float() for x in stored)
    close(attend(q, *stored, spec, positions, {}), truth(q, k, v, spec, positions))


def test_no_mask_is_made_where_none_is_needed() -> None:
    for spec in (SPEC, replace(SPEC, window=7)):
        assert scores_bias(spec, torch.tensor([6]), 7, torch.float32) is None
        biases: dict[int | None, Tensor | None] = {}
        q, k, v = inputs(spec, 1, 7, 7)
        attend(q, k, v, spec, torch.arange(7), biases)
        assert biases == {}
    found = scores_bias(SPEC, torch.tensor([1]), 3, torch.float32, newest=False)
    assert found is not None
    assert found.tolist() == [[[[True, True, False]]]]


def test_masks_by_hand() -> None:
    found = scores_bias(SPEC, torch.tensor([1, 3]), 4, torch.float32)
    assert found is not None
    assert found.dtype == torch.bool
    assert found.tolist() == [[[[True, True, False, False], [True] * 4]]]
    found = scores_bias(replace(SPEC, window=2), torch.tensor([[3], [0]]), 4, torch.float32)
    assert found is not None
    assert found.tolist() == [[[[False, False, True, True]]], [[[True, False, False, False]]]]
    found = scores_bias(replace(SPEC, heads=2, alibi=2.0), torch.tensor([1]), 3, torch.float16)
    assert found is not None
    assert found.dtype == torch.float16
    assert found.tolist() == [[[[-2 * s, 0, -math.inf]] for s in (2.0**-4, 2.0**-8)]]


def test_layers_of_one_window_share_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int | None] = []
    real = scores_bias
    monkeypatch.setattr(torch_attention, "scores_bias", lambda spec, *a, **k: made.append(spec.window) or real(spec, *a, **k))  # fmt: skip
    biases: dict[int | None, Tensor | None] = {}
    q, k, v = inputs(SPEC, 1, 3, 7)
    for window in (None, 2, None, 2, 3):
        attend(q, k, v, replace(SPEC, window=window), torch.arange(4, 7), biases)
    assert made == [None, 2, 3]
    assert set(biases) == {None, 2, 3}
