"""A compiled layer against its formula in float64: norms, heads, windows, caps, biases, and where keys and values go."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from int8conv.kernels.cpu import fused, jit
from int8conv.kernels.cpu.fused import FusedAttention, FusedLayer, FusedNorm
from int8conv.kernels.weight import MixedWeight

from ..mixed_weights import dense, make_weight

pytestmark = pytest.mark.skipif(not jit.available(), reason="numba is not installed")

HIDDEN, HEADS, KV, SIZE, INNER, CAPACITY = 32, 4, 2, 8, 24, 6
G = torch.Generator().manual_seed(0)
QKV = make_weight((HEADS + 2 * KV) * SIZE, HIDDEN, 16, seed=1)
OUT = make_weight(HIDDEN, HEADS * SIZE, seed=2)
WIDE = make_weight(2 * INNER, HIDDEN, seed=3)
DOWN = make_weight(HIDDEN, INNER, 16, seed=4)
X = torch.randn(2, HIDDEN, generator=G)
LENGTHS = torch.tensor([3, 5])


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G)


def norm(rms: bool = True, bias: bool = False) -> FusedNorm:
    return FusedNorm(rms, 1e-5, 1 + random(HIDDEN) / 4, random(HIDDEN) if bias else None)


ATTENTION = FusedAttention(0.3, None)
BIASES = [random(w.out_features) for w in (QKV, OUT, WIDE, DOWN)]
ANGLES = random(2, 3)
CASES: dict[str, dict[str, Any]] = {
    "plain": {}, "layer norms, biases": {"norms": [norm(False, True), None, norm(False), None], "biases": BIASES, "activation": "relu"},
    "norms around, gelu": {"norms": [norm() for _ in range(4)], "activation": "gelu", "residual_multiplier": 0.5},
    "norms behind": {"norms": [None, norm(), None, norm()], "activation": "relu2"},
    "parallel": {"parallel": True, "residual_multiplier": 2.0}, "not gated": {"gated": False, "activation": "gelu_tanh"},
    "rotated": {"rotated": 6}, "interleaved": {"rotated": 6, "attention": replace(ATTENTION, interleaved=True)},
    "by heads": {"attention": replace(ATTENTION, by_heads=True)}, "window": {"attention": replace(ATTENTION, window=3)},
    "cap": {"attention": replace(ATTENTION, softcap=0.7)}, "slopes": {"attention": replace(ATTENTION, slopes=torch.tensor([0.1, 0.2, 0.4, 0.8]))},
    "norms of heads": {"attention": replace(ATTENTION, query_gain=1 + random(SIZE) / 4, key_gain=1 + random(SIZE) / 4, eps=1e-6), "rotated": 6},
    "norms of all heads": {"attention": replace(ATTENTION, query_gain=1 + random(HEADS * SIZE) / 4, key_gain=1 + random(KV * SIZE) / 4, eps=1e-6)},
}  # fmt: skip


def normed(x: Tensor, n: FusedNorm | None) -> Tensor:
    if n is None:
        return x
    if n.rms:
        return x * (x.square().mean(-1, keepdim=True) + n.eps).rsqrt() * n.weight.double()
    bias = None if n.bias is None else n.bias.double()
    return F.layer_norm(x, x.shape[-1:], n.weight.double(), bias, n.eps)


def of_heads(x: Tensor, gain: Tensor | None, eps: float) -> Tensor:
    """``[heads, size]``, each normalised or all together."""
    if gain is None:
        return x
    rows = x if len(gain) == SIZE else x.reshape(1, -1)
    return (rows * (rows.square().mean(-1, keepdim=True) + eps).rsqrt() * gain.double()).view(x.shape)  # fmt: skip


def turned(x: Tensor, angles: Tensor, interleaved: bool) -> Tensor:
    """The first channels of each head, in pairs."""
    y, half = x.clone(), len(angles)
    for i, angle in enumerate(angles.double().tolist()):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
        y[:, a] = x[:, a] * math.cos(angle) - x[:, b] * math.sin(angle)
        y[:, b] = x[:, b] * math.cos(angle) + x[:, a] * math.sin(angle)
    return y


def truth(case: dict[str, Any], keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The layer's output, and the cache with the new keys and values; float64."""
    a: FusedAttention = case["attention"]
    before, post, mlp_norm, mlp_post = case["norms"]
    biases = case["biases"]
    scale, x = case["residual_multiplier"], X.double()

    def linear(y: Tensor, weight: MixedWeight, number: int) -> Tensor:
        bias = 0 if biases is None else biases[number][: weight.out_features].double()
        return y @ dense(weight).t() + bias

    y, rows = linear(normed(x, before), QKV, 0), []
    keys, values = keys.double().clone(), values.double().clone()
    for i, length in enumerate(LENGTHS.tolist()):
        heads = y[i].view(-1, SIZE)
        if a.by_heads:
            groups = heads.view(KV, HEADS // KV + 2, SIZE)
            q, k, v = groups[:, :-2].reshape(-1, SIZE), groups[:, -2], groups[:, -1]
        else:
            q, k, v = heads.split([HEADS, KV, KV])
        q, k = of_heads(q, a.query_gain, a.eps), of_heads(k, a.key_gain, a.eps)
        if case["rotated"]:
            q, k = (turned(each, ANGLES[i], a.interleaved) for each in (q, k))
        keys[i, :, length], values[i, :, length] = k, v
        first = 0 if a.window is None else max(0, length + 1 - a.window)
        out = []
        for h in range(HEADS):
            g = h // (HEADS // KV)
            scores = keys[i, g, first : length + 1] @ q[h] * a.scale
            if a.softcap is not None:
                scores = a.softcap * torch.tanh(scores / a.softcap)
            if a.slopes is not None:
                scores -= a.slopes[h].double() * torch.arange(length - first, -1, -1)
            out.append(scores.softmax(0) @ values[i, g, first : length + 1])
        rows.append(torch.cat(out))
    h = x + scale * normed(linear(torch.stack(rows), OUT, 1), post)
    formulas: dict[str, Any] = {"silu": F.silu, "relu": F.relu, "gelu": F.gelu, "relu2": lambda y: F.relu(y) ** 2, "gelu_tanh": lambda y: F.gelu(y, approximate="tanh")}  # fmt: skip
    wide = linear(normed(x if case["parallel"] else h, mlp_norm), case["wide"], 2)
    act = formulas[case["activation"]]
    if case["gated"]:
        gate, up = wide.chunk(2, dim=1)
        inner = act(gate) * up
    else:
        inner = act(wide)
    return h + scale * normed(linear(inner, DOWN, 3), mlp_post), keys, values


def full(changes: dict[str, Any]) -> dict[str, Any]:
    case = {
        "norms": [norm(), None, norm(), None], "attention": ATTENTION, "biases": None, "activation": "silu", "gated": True,
        "parallel": False, "residual_multiplier": 1.0, "rotated": 0, **changes,
    }  # fmt: skip
    case["wide"] = WIDE if case["gated"] else make_weight(INNER, HIDDEN, seed=3)
    return case


def layer(case: dict[str, Any]) -> FusedLayer:
    weights = (QKV, OUT, case["wide"], DOWN)
    linears = [(w, None if case["biases"] is None else case["biases"][i][: w.out_features]) for i, w in enumerate(weights)]  # fmt: skip
    return FusedLayer(
        case["norms"], case["attention"], linears, case["activation"], case["gated"], parallel=case["parallel"],
        residual_multiplier=case["residual_multiplier"],
    )  # fmt: skip


def tables(case: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Each pair's value twice: beside each other, or half the channels apart."""
    if not case["rotated"]:
        return None
    twice = ANGLES.repeat_interleave(2, 1) if case["attention"].interleaved else ANGLES.repeat(1, 2)
    return twice.cos(), twice.sin()


def cache() -> tuple[Tensor, Tensor]:
    """What is not filled is large."""
    both = torch.randn(2, 2, KV, CAPACITY, SIZE, generator=torch.Generator().manual_seed(5))
    for i, length in enumerate(LENGTHS.tolist()):
        both[:, i, :, length:] = 1e4
    return both[0].contiguous(), both[1].contiguous()


def test_everything_is_compiled_beforehand() -> None:
    """First of these tests, as code stays in a process: with and without tables, layers find what ``prepare`` has compiled."""
    from int8conv.kernels.cpu.jit_layer import layer as compiled

    fused.prepare()
    before = list(compiled.signatures)
    assert before
    for case in (full({}), full({"rotated": 6})):
        layer(case)(X, tables(case), *cache(), LENGTHS)
    assert list(compiled.signatures) == before


@pytest.mark.parametrize("name", CASES)
def test_a_layer_is_its_formula(name: str) -> None:
    """For two sequences of different length; the input and the rest of the cache stay."""
    case = full(CASES[name])
    keys, values = cache()
    expected, wanted_keys, wanted_values = truth(case, keys, values)
    x = X.clone()
    found = layer(case)(x, tables(case), keys, values, LENGTHS)
    assert torch.equal(x, X)
    assert found.shape == (2, HIDDEN)
    error = (found.double() - expected).abs().max()
    assert error <= 1e-5 * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(keys.double(), wanted_keys, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(values.double(), wanted_values, rtol=1e-5, atol=1e-5)


def test_one_row_of_tables_serves_every_sequence() -> None:
    case = full({"rotated": 6})
    made, (cos, sin) = layer(case), tables(case) or (X, X)
    one, same = (cos[:1], sin[:1]), (cos[:1].repeat(2, 1), sin[:1].repeat(2, 1))
    assert torch.equal(made(X, one, *cache(), LENGTHS), made(X, same, *cache(), LENGTHS))


def test_a_full_cache_is_not_written_past_its_end() -> None:
    case, (keys, values) = full({}), cache()
    before = keys.clone()
    with pytest.raises(IndexError, match="full"):
        layer(case)(X, None, keys, values, torch.tensor([3, CAPACITY]))
    assert torch.equal(keys[1], before[1])
