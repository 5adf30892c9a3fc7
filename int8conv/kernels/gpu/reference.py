# ruff: noqa: ARG001  (the kernels' signatures)
"""The formulas of the GPU kernels in PyTorch, with the same signatures, for tests and benchmarks to compare against.

Written for readability. Sums are float64 and rounded once to float32, so a kernel may differ by the rounding of its own sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from ..weight import MixedWeight
from .experts import ExpertWeights
from .prologue import Prologue
from .quantize import SCALE_BLOCK, QuantizedTokens
from .sampling import Draws

ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "none": lambda x: x,
    "silu": F.silu,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


def apply(x: Tensor, prologue: Prologue) -> Tensor:
    """The norm or activation function alone, rounding to 16 bits where the decoder does."""
    if prologue.norm == "rms":
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + prologue.eps)
        if prologue.weight is not None and prologue.weight.dtype != x.dtype:
            x = (wide * prologue.weight).to(x.dtype)
        else:
            x = wide.to(x.dtype)
            x = x if prologue.weight is None else x * prologue.weight
    elif prologue.norm == "layer":
        gain, shift = (None if t is None else t.float() for t in (prologue.weight, prologue.bias))
        x = F.layer_norm(x.float(), x.shape[-1:], gain, shift, prologue.eps).to(x.dtype)
    x = ACTIVATIONS[prologue.activation](x.float()).to(x.dtype)
    return x if prologue.times is None else x * prologue.times


def quantize(
    x: Tensor,
    prologue: Prologue = Prologue(),  # noqa: B008  (frozen)
    *,
    index: Tensor | None = None,
    is_outlier: Tensor | None = None,
    threshold: float | None = None,
    counts: Tensor | None = None,
    block: int = SCALE_BLOCK,
) -> QuantizedTokens:
    """Quantize tokens to int8, each block of channels by its largest magnitude outside the outlier channels."""
    x = apply(x, prologue)
    rest = x.float() if index is None else x.float().index_fill(1, index.long(), 0.0)
    if threshold is not None and counts is not None:
        over = rest.abs() >= threshold
        tokens = torch.tensor([len(x), int(over.any(1).sum())])
        counts += torch.cat([tokens, over.sum(0)]).to(counts.device)
    blocks = F.pad(rest, (0, -x.shape[1] % block)).view(len(x), -1, block)
    peak = blocks.abs().amax(2)
    inverse = torch.tensor(127.0) / peak.clamp(min=2.0**-120)  # 127.0 / tensor would round twice
    codes = (blocks.double() * inverse.double()[:, :, None]).round().to(torch.int8)
    return QuantizedTokens(
        codes.flatten(1)[:, : x.shape[1]], (peak / 127.0).t(),
        None if index is None else x.index_select(1, index.long()), x.dtype, block,
    )  # fmt: skip


def values_of(x: QuantizedTokens) -> Tensor:
    """What the codes stand for, float64 ``[tokens, in]``."""
    scale = x.scale.double().t().repeat_interleave(x.block, 1)
    return x.codes.double() * scale[:, : x.codes.shape[1]]


def gemm(
    x: QuantizedTokens,
    weight: MixedWeight,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
    config: object = None,
) -> Tensor:
    """Quantized tokens times an int8 weight with outlier columns."""
    y = (values_of(x) @ weight.codes.double().t()) * weight.scale.double()
    if x.outliers is not None and weight.outlier_weight is not None:
        y += x.outliers.double() @ weight.outlier_weight.double().t()
    return _finished(y, bias, residual, dtype or x.dtype)


def w8a16(
    x: Tensor,
    weight: MixedWeight,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    activation: str = "none",
    norm: Prologue = Prologue(),  # noqa: B008  (frozen)
    config: object = None,
) -> Tensor:
    """16-bit tokens times an int8 weight with outlier columns; gated by an activation if the weight is ``[gate; up]``."""
    x = x if norm.is_empty else apply(x, norm)
    dense = weight.codes.double() * weight.scale.double()[:, None]
    if weight.outlier_index is not None and weight.outlier_weight is not None:
        dense[:, weight.outlier_index.long()] = weight.outlier_weight.double()
    y = x.double() @ dense.t()
    if bias is not None:
        y += bias.double()
    if activation != "none":
        gate, up = y.chunk(2, dim=-1)
        y = ACTIVATIONS[activation](gate) * up
    return _finished(y, None, residual, x.dtype)


def chosen_experts(
    x: Tensor,
    weights: ExpertWeights,
    chosen: Tensor,
    *,
    activation: str = "none",
    config: object = None,
) -> Tensor:
    """Tokens times the weights of the experts chosen for them."""
    each = len(chosen) // max(len(x), 1)
    return torch.cat([
        w8a16(x[s // each][None], weights.experts[e], activation=activation)
        for s, e in enumerate(chosen.tolist())
    ])  # fmt: skip


def _finished(y: Tensor, bias: Tensor | None, residual: Tensor | None, dtype: torch.dtype) -> Tensor:  # fmt: skip
    y = y if bias is None else y + bias.double()
    y = y if residual is None else y + residual.double()
    return y.float().to(dtype)


def attend(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    tables: tuple[Tensor, Tensor] | None,
    lengths: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    scale: float,
    scales: tuple[Tensor, Tensor] | None = None,
    slopes: Tensor | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    interleaved: bool = False,
    config: object = None,
) -> Tensor:
    """Attention of a new token of each sequence over its cache, to which it is added."""
    positions, capacity = lengths - 1, keys.shape[2]
    longer = [_with_room(x, int(lengths.max())) for x in (keys, values, *(scales or ()))]
    if k is None or v is None:
        size = keys.shape[3]
        queries = q.reshape(len(q), -1, size)
        if tables is not None:
            cos, sin = (table[positions.long()].double()[:, None] for table in tables)
            queries = _rotate(queries, cos, sin, interleaved)
    else:
        rows = (q, k, v, tables, positions)
        rotate_and_store(*rows, keys, values, scales=scales, interleaved=interleaved)
        new_scales = (longer[2], longer[3]) if scales is not None else None
        queries = rotate_and_store(*rows, longer[0], longer[1], scales=new_scales, interleaved=interleaved)  # fmt: skip
    y, group = torch.empty_like(queries), queries.shape[1] // keys.shape[1]
    for i, position in enumerate(positions.tolist()):
        first = 0 if window is None else max(position + 1 - window, 0)
        seen = torch.tensor([*range(first, min(position, capacity)), position])
        wide = [x[i, :, seen].double().repeat_interleave(group, 0) for x in longer]
        wide_keys, wide_values = wide if scales is None else (wide[0] * wide[2], wide[1] * wide[3])
        scores = (wide_keys @ queries[i].double()[:, :, None]).squeeze(2) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if slopes is not None:
            scores += slopes.double()[:, None] * (seen - position)
        if sinks is not None:  # a position without a value
            scores = torch.cat([scores, sinks.double()[:, None]], dim=1)
        y[i] = (scores.softmax(-1)[:, None, : len(seen)] @ wide_values).squeeze(1).to(q.dtype)
    return y


def _with_room(x: Tensor, capacity: int) -> Tensor:
    """A copy of a cache with another capacity."""
    y = x.new_zeros(*x.shape[:2], capacity, x.shape[3])
    y[:, :, : x.shape[2]] = x[:, :, :capacity]
    return y


def rotate_and_store(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: tuple[Tensor, Tensor] | None,
    positions: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    scales: tuple[Tensor, Tensor] | None = None,
    interleaved: bool = False,
) -> Tensor:
    """Rotary positions for queries and keys; keys and values into the cache."""
    batch, _, _, size = keys.shape
    queries, new_keys, new_values = (t.reshape(q.shape[0], -1, size) for t in (q, k, v))
    if tables is not None:
        cos, sin = (table[positions.long()].double()[:, None] for table in tables)
        queries, new_keys = (_rotate(t, cos, sin, interleaved) for t in (queries, new_keys))
    sequences = torch.arange(q.shape[0]) // (q.shape[0] // batch)
    for i, (sequence, position) in enumerate(zip(sequences.tolist(), positions.tolist(), strict=True)):  # fmt: skip
        if not 0 <= position < keys.shape[2]:
            continue
        for kind, (cache, new) in enumerate(((keys, new_keys[i]), (values, new_values[i]))):
            if scales is not None:
                new, scales[kind][sequence, :, position] = _coded(new)
            cache[sequence, :, position] = new
    return queries


def _coded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and the float16 scale of each head, ``[heads, head_dim]``."""
    scale = (x.float().abs().amax(-1, keepdim=True) / 127).clamp(2.0**-14, 65504.0).half()
    codes = (x.float() / scale.float()).clamp(-127, 127).round().nan_to_num()
    return codes.to(torch.int8), scale


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    half = cos.shape[-1]
    y = x.double()
    first, second = (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if interleaved else (slice(half), slice(half, 2 * half))  # fmt: skip
    a, b = y[..., first].clone(), y[..., second].clone()
    y[..., first], y[..., second] = a * cos - b * sin, b * cos + a * sin
    return y.to(x.dtype)


def kept(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """float64 probabilities ``[vocab]`` to draw a token from, for temperatures above 0."""
    wide = logits.double()
    order = wide.sort(descending=True).values
    weights = ((wide - order[0]) / temperature).exp()
    if 0 < top_k < wide.numel():
        weights = weights.where(wide >= order[top_k - 1], 0.0)
    if top_p < 1:
        sums = torch.stack([weights[wide >= value].sum() for value in order])
        weights = weights.where(wide >= order[int((sums < top_p * sums[-1]).sum())], 0.0)
    weights = weights.where(weights >= min_p, 0.0)
    probabilities: Tensor = weights / weights.sum()
    return probabilities


def sample(logits: Tensor, draws: Draws, positions: Tensor, *, out: Tensor | None = None) -> Tensor:
    """The next token of each sequence, drawn with a different generator than the kernel's."""
    tokens = torch.empty(logits.shape[0], dtype=torch.int64) if out is None else out
    for i, row in enumerate(logits):
        temperature, top_k, top_p, min_p, seed = (t[i].item() for t in vars(draws).values())
        if temperature == 0:
            tokens[i] = row.argmax()
            continue
        generator = torch.Generator().manual_seed(int(seed) * 2**20 + int(positions[i]))
        probabilities = kept(row, temperature, int(top_k), top_p, min_p)
        tokens[i] = torch.multinomial(probabilities, 1, generator=generator)[0]
    return tokens
