"""What attention does in one layer, beyond q, k and v: scale, masks and biases of scores, norms of heads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import DecoderConfig
from .norms import NormWeights
from .quantized_cache import Quantized


@dataclass(frozen=True)
class AttentionSpec:
    """Attention of one layer."""

    layer: int
    heads: int
    kv_heads: int
    size: int
    """Channels of a head."""
    scale: float
    """Of scores."""
    softcap: float | None = None
    window: int | None = None
    """Positions that a token sees, itself included."""
    alibi: float = 0.0
    """What the slopes of ALiBi are multiplied by; 0: there is none."""
    rotary: int = 0
    """Which of the decoder's rotary embeddings."""
    neighbours: bool = False
    """How that one pairs channels."""
    query_norm: NormWeights | None = None
    key_norm: NormWeights | None = None
    by_head: bool = True
    """The norms are of each head; else of all together."""

    @classmethod
    def of(
        cls, config: DecoderConfig, layer: int, query_norm: NormWeights | None, key_norm: NormWeights | None
    ) -> AttentionSpec:  # fmt: skip
        """Of a layer of a decoder."""
        window = config.window(layer)
        local = config.local_rope is not None and window is not None
        scale = config.attention_scale
        scale = config.head_dim**-0.5 if scale is None else scale
        return cls(
            layer,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            scale,
            config.attention_softcap,
            window,
            (scale if config.alibi_scaled else 1.0) if config.alibi else 0.0,
            int(local),
            config.rope is not None and config.rope.neighbours,
            query_norm,
            key_norm,
            config.query_norm != "row",
        )


def scores_bias(spec: AttentionSpec, positions: Tensor, end: int, dtype: torch.dtype) -> Tensor | None:  # fmt: skip
    """What masks do to scores of tokens at ``positions``, ``[t]`` or of each sequence ``[b, t]``, for keys up to ``end``.

    Returns:
        bool (True may look) or float, ``[(h,) t, s]`` or ``[b, h or 1, t, s]``; None: nothing.
    """
    windowed = spec.window is not None and spec.window < end
    if not spec.alibi and not windowed and positions.shape == (1,):
        return None
    distance = positions[..., None] - torch.arange(end, device=positions.device)
    if positions.ndim == 2:
        distance = distance[:, None]
    allowed = distance >= 0
    if windowed:
        allowed &= distance < (spec.window or end)
    if not spec.alibi:
        return allowed
    slopes = alibi_slopes(spec.heads).to(positions.device)
    bias = -slopes[:, None, None] * spec.alibi * distance
    return bias.masked_fill(~allowed, -math.inf).to(dtype)


def attend(
    q: Tensor, k: Tensor | Quantized, v: Tensor | Quantized, spec: AttentionSpec, bias: Tensor | None
) -> Tensor:  # fmt: skip
    """Softmax of scores times values: ``[b, h, t, d]`` for q ``[b, h, t, d]``, k and v ``[b, kv_heads, s, d]``.

    Keys and values that are not of the dtype of q are widened to it a block of heads of one sequence at a time.
    """
    if isinstance(k, Tensor) and isinstance(v, Tensor) and k.dtype == q.dtype:
        return _attend(q, k, v, spec, bias)
    group = spec.heads // spec.kv_heads
    step = max(1, _WIDENED_ELEMENTS // (k.shape[2] * k.shape[3]))
    y = torch.empty_like(q)
    for i in range(q.shape[0]):
        for first in range(0, spec.kv_heads, step):
            last = min(first + step, spec.kv_heads)
            heads = slice(first * group, last * group)
            keys, values = (_widened(x, i, first, last, q.dtype) for x in (k, v))
            y[i : i + 1, heads] = _attend(
                q[i : i + 1, heads], keys, values, spec, _bias_part(bias, i, heads)
            )
    return y


_WIDENED_ELEMENTS: Final = 1 << 18
"""1 MiB of keys and as much of values in float32, or one head where that is more: in the cache of a core until they are used."""


def _widened(
    x: Tensor | Quantized, sequence: int, first: int, last: int, dtype: torch.dtype
) -> Tensor:
    if isinstance(x, Quantized):
        return x.widened(sequence, first, last, dtype)
    return x[sequence : sequence + 1, first:last].to(dtype)


def _bias_part(bias: Tensor | None, sequence: int, heads: slice) -> Tensor | None:
    """What of ``scores_bias`` is of one sequence and some heads."""
    if bias is None or bias.ndim == 2:
        return bias
    if bias.ndim == 4:
        bias = bias[sequence]
    return bias if bias.shape[0] == 1 else bias[heads]


def _attend(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, bias: Tensor | None) -> Tensor:
    """Of some heads, in one dtype."""
    grouped = q.shape[1] != k.shape[1]
    if spec.softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=spec.scale, enable_gqa=grouped)  # fmt: skip
    if grouped:
        k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
    scores = torch.tanh(q @ k.transpose(-1, -2) * (spec.scale / spec.softcap)) * spec.softcap
    if bias is not None:
        scores = scores.masked_fill(~bias, -math.inf) if bias.dtype == torch.bool else scores + bias
    return torch.softmax(scores.float(), dim=-1).to(v.dtype) @ v


def alibi_slopes(heads: int) -> Tensor:
    """Slopes of ALiBi (arXiv:2108.12409, section 3), float32 ``[heads]``; between powers of two, every other of the next."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (i + 1) / power) for i in range(0, 2 * (heads - power), 2)]
    return torch.tensor(slopes)
