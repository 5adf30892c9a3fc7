"""Attention in PyTorch: masks and score biases, and caches of other dtypes, widened a block of heads at a time.

A head's sink s (gpt-oss, arXiv:2508.10925, section 2) is the score of one more position, whose value is zero: a token can attend to
nothing. Its probabilities are ``exp(score - log(exp(s) + sum of exp(scores)))`` and add up to less than 1.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..decoder.attention_spec import AttentionSpec, alibi_slopes
from ..decoder.cache import Quantized, Stored
from ..decoder.working_sizes import SCORES_AT_ONCE, WIDENED_AT_ONCE


def scores_bias(
    spec: AttentionSpec, positions: Tensor, end: int, dtype: torch.dtype, *, newest: bool = True
) -> Tensor | None:
    """The mask or bias of scores of tokens at ``positions``, ``[t]`` or ``[b, t]``, for keys up to ``end``.

    ``newest``: the last of the tokens is the last key too; alone, it sees all of them.

    Returns:
        bool (True: attend) or float, ``[b or 1, h or 1, t, s]``; None: no mask.
    """
    windowed = spec.window is not None and spec.window < end
    if newest and not spec.alibi and not windowed and positions.shape == (1,):
        return None
    where = positions[None] if positions.ndim == 1 else positions
    keys = torch.arange(end, dtype=torch.int32, device=positions.device)
    distance = where.to(torch.int32)[:, None, :, None] - keys
    allowed = distance >= 0
    if windowed:
        allowed &= distance < (spec.window or end)
    if not spec.alibi:
        return allowed
    slopes = alibi_slopes(spec.heads).to(positions.device)
    bias = distance * (-slopes[:, None, None] * spec.alibi)
    return bias.masked_fill_(~allowed, -math.inf).to(dtype)


def attend(
    q: Tensor, k: Stored, v: Stored, spec: AttentionSpec, positions: Tensor, biases: dict[int | None, Tensor | None]
) -> Tensor:  # fmt: skip
    """Softmax of scores times values, ``[b, h, t, d]``, for q ``[b, h, t, d]`` at ``positions``, ``[t]`` or ``[b, t]``.

    Keys and values of another dtype than q are widened to it, a block of heads of one sequence at a time. ``biases`` caches
    biases by window for all layers; it starts out empty.
    """
    tokens, end = q.shape[2], k.shape[2]
    if _is_causal_alone(spec, positions, tokens, end):
        return _attend_stored(q, k, v, spec, None, causal=True)
    wide = spec.heads if spec.alibi or spec.explicit else 1
    step = max(1, SCORES_AT_ONCE // (wide * positions.numel() // tokens * end))
    if tokens <= step:
        if spec.window not in biases:
            biases[spec.window] = scores_bias(spec, positions, end, q.dtype)
        return _attend_stored(q, k, v, spec, biases[spec.window])
    y = torch.empty_like(q)
    for first in range(0, tokens, step):
        part = slice(first, first + step)
        newest = first + step >= tokens
        bias = scores_bias(spec, positions[..., part], end, q.dtype, newest=newest)
        y[:, :, part] = _attend_stored(q[:, :, part], k, v, spec, bias)
    return y


def _is_causal_alone(spec: AttentionSpec, positions: Tensor, tokens: int, end: int) -> bool:
    """Whether attention is plain causal attention from position 0 on, which needs no mask."""
    if spec.alibi or spec.explicit or positions.ndim == 2 or tokens != end:
        return False
    return spec.window is None or spec.window >= end


def _attend_stored(
    q: Tensor, k: Stored, v: Stored, spec: AttentionSpec, bias: Tensor | None, *, causal: bool = False
) -> Tensor:  # fmt: skip
    if isinstance(k, Tensor) and isinstance(v, Tensor) and k.dtype == q.dtype:
        return _attend(q, k, v, spec, bias, causal)
    group = spec.heads // spec.kv_heads
    step = max(1, WIDENED_AT_ONCE // (k.shape[2] * k.shape[3]))
    y = torch.empty_like(q)
    for i in range(q.shape[0]):
        for first in range(0, spec.kv_heads, step):
            last = min(first + step, spec.kv_heads)
            heads = slice(first * group, last * group)
            keys, values = (_widened(x, i, first, last, q.dtype) for x in (k, v))
            masks = _bias_of(bias, i, heads)
            some = spec if spec.sinks is None else replace(spec, sinks=spec.sinks[heads])
            y[i : i + 1, heads] = _attend(q[i : i + 1, heads], keys, values, some, masks, causal)
    return y


def _widened(x: Stored, sequence: int, first: int, last: int, dtype: torch.dtype) -> Tensor:
    if isinstance(x, Quantized):
        return x.widened(sequence, first, last, dtype)
    return x[sequence : sequence + 1, first:last].to(dtype)


def _bias_of(bias: Tensor | None, sequence: int, heads: slice) -> Tensor | None:
    """The part of ``scores_bias`` for one sequence and some heads."""
    if bias is None:
        return None
    bias = bias if bias.shape[0] == 1 else bias[sequence : sequence + 1]
    return bias if bias.shape[1] == 1 else bias[:, heads]


def _attend(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, bias: Tensor | None, causal: bool) -> Tensor:  # fmt: skip
    """Attention of some heads, all in one dtype."""
    if not spec.explicit:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, is_causal=causal, scale=spec.scale, enable_gqa=q.shape[1] != k.shape[1]
        )  # fmt: skip
    batch, kv_heads, _, size = k.shape
    grouped = q.reshape(
        batch, kv_heads, -1, size
    )  # query heads of each key head, one after another
    scores = (grouped @ k.transpose(-1, -2)).mul_(spec.scale / (spec.softcap or 1.0))
    if spec.softcap is not None:
        scores = scores.tanh_().mul_(spec.softcap)
    scores = scores.view(*q.shape[:3], -1)
    if bias is not None:
        scores = (
            scores.masked_fill_(~bias, -math.inf) if bias.dtype == torch.bool else scores + bias
        )
    probabilities = softmax(scores.float(), spec.sinks).to(v.dtype)
    return (probabilities.view(batch, kv_heads, -1, k.shape[2]) @ v).view(q.shape)


def softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Probabilities ``[b, h, t, s]`` of float32 scores, which may be overwritten; ``sinks``: float32 ``[h]``."""
    if sinks is None:
        return torch.softmax(scores, dim=-1)
    total = torch.logaddexp(scores.logsumexp(-1, keepdim=True), sinks[:, None, None])
    return scores.sub_(total).exp_()
