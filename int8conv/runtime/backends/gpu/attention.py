"""Attention on a GPU: one new token per sequence with the Triton kernel, cache and rotation included, prompts with PyTorch; imports triton.

A prompt with plain causal attention goes through PyTorch's ``scaled_dot_product_attention`` at once, after earlier positions with a mask that
exists as a bias of FlashAttention only (where that runs; a dense one would be written out per head). Others are split into parts of their tokens, to bound the tensors of size tokens x positions. Query heads of one key head are stacked in one matrix, as
PyTorch's memory-efficient kernel, the one that supports masks, does not support grouped heads.

The Triton kernel reads the codes of an int8 cache directly; for prompts the cache is widened for a block of heads of one sequence
at a time, including the prompt's own keys and values, so that a token sees the same values as if it were processed alone.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.nn.attention.bias import causal_lower_right

from ....kernels.gpu.attention import attend
from ....kernels.gpu.prologue import Prologue
from ....kernels.gpu.quantize import apply
from ...decoder.attention_spec import AttentionSpec, alibi_slopes
from ...decoder.cache import Quantized, Stored
from ...decoder.norms import NormWeights
from ...decoder.rotary import rotate
from ...decoder.working_sizes import SCORES_ON_GPU, WIDENED_ON_GPU
from ..torch_attention import softmax


class DeviceAttention:
    """Attention's constants on the device: ALiBi slopes, which a CUDA graph must not copy there."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._slopes: dict[tuple[int, float], Tensor] = {}

    def slopes(self, spec: AttentionSpec) -> Tensor | None:
        """float32 ``[heads]``, created once."""
        if not spec.alibi:
            return None
        key = (spec.heads, spec.alibi)
        if key not in self._slopes:
            self._slopes[key] = (alibi_slopes(spec.heads) * spec.alibi).to(self._device)
        return self._slopes[key]

    def step(
        self, qkv: tuple[Tensor, Tensor | None, Tensor | None], tables: tuple[Tensor, Tensor] | None, keys: Stored, values: Stored,
        filled: Tensor, spec: AttentionSpec,
    ) -> Tensor:  # fmt: skip
        """One new token per sequence, q, k and v ``[b, h * d]``, rotated and added to the whole cache -> ``[b, h, d]``; without k and v it is there."""
        stored_keys, stored_values, scales = tensors_of(keys, values)
        return attend(
            *qkv, tables, filled, stored_keys, stored_values, scales=scales, scale=spec.scale, slopes=self.slopes(spec),
            window=spec.window, softcap=spec.softcap, sinks=spec.sinks, interleaved=spec.interleaved,
        )  # fmt: skip

    def prompt(self, q: Tensor, keys: Stored, values: Stored, past: int, spec: AttentionSpec) -> Tensor:  # fmt: skip
        """Tokens after ``past`` positions: q ``[b, t, h, d]``, keys and values of the whole cache -> ``[b, t, h * d]``."""
        slopes = self.slopes(spec)
        if isinstance(keys, Tensor) and isinstance(values, Tensor):
            return _prompt(q, keys, values, past, spec, slopes)
        assert isinstance(keys, Quantized) and isinstance(values, Quantized)
        tokens, group = q.shape[1], spec.heads // spec.kv_heads
        begin = 0 if spec.window is None else max(0, past + 1 - spec.window)
        end, past = past + tokens, past - begin  # everything else depends only on distances
        k, v = keys.between(begin, end), values.between(begin, end)
        step = min(spec.kv_heads, max(1, WIDENED_ON_GPU // ((end - begin) * spec.size)))
        y = torch.empty_like(q)
        for i in range(len(q)):
            for first in range(0, spec.kv_heads, step):
                last = min(first + step, spec.kv_heads)
                heads = slice(first * group, last * group)
                some = replace(spec, heads=(last - first) * group, kv_heads=last - first)
                wide_k, wide_v = (x.widened(i, first, last, q.dtype) for x in (k, v))
                slope = None if slopes is None else slopes[heads]
                some = some if spec.sinks is None else replace(some, sinks=spec.sinks[heads])
                part = _prompt(q[i : i + 1, :, heads], wide_k, wide_v, past, some, slope)
                y[i, :, heads] = part.view(tokens, -1, spec.size)
        return y.flatten(2)


def tensors_of(keys: Stored, values: Stored) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
    """A cache as arguments of kernels: keys, values, and the scales of both if they are int8."""
    if isinstance(keys, Quantized) and isinstance(values, Quantized):
        return keys.codes, values.codes, (keys.scale, values.scale)
    assert isinstance(keys, Tensor) and isinstance(values, Tensor)
    return keys, values, None


def _prompt(
    q: Tensor, keys: Tensor, values: Tensor, past: int, spec: AttentionSpec, slopes: Tensor | None
) -> Tensor:
    """Like ``DeviceAttention.prompt``, in the dtype of q."""
    tokens = q.shape[1]
    end = past + tokens
    windowed = spec.window is not None and spec.window < end
    plain = slopes is None and not spec.explicit
    if plain and not windowed:
        bias = None if past == 0 else causal_lower_right(tokens, end)
        heads, k, v = q.transpose(1, 2), keys[:, :, :end], values[:, :, :end]
        grouped = spec.heads != spec.kv_heads
        if bias is None or can_use_flash_attention(SDPAParams(heads, k, v, None, 0.0, False, grouped)):  # fmt: skip
            y = F.scaled_dot_product_attention(
                heads, k, v, bias, is_causal=bias is None, scale=spec.scale, enable_gqa=grouped
            )
            return y.transpose(1, 2).flatten(2)
    across = spec.heads // spec.kv_heads if plain else len(q) * spec.heads
    step = max(1, SCORES_ON_GPU // (end * across))
    parts = [
        _part(q[:, i : i + step], keys, values, past + i, spec, slopes)
        for i in range(0, tokens, step)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _part(q: Tensor, keys: Tensor, values: Tensor, first: int, spec: AttentionSpec, slopes: Tensor | None) -> Tensor:  # fmt: skip
    """Tokens from position ``first`` on, ``[b, t, h, d]`` -> ``[b, t, h * d]``, over the positions they attend to."""
    batch, tokens = q.shape[:2]
    group = spec.heads // spec.kv_heads
    begin = 0 if spec.window is None else max(0, first + 1 - spec.window)
    end = first + tokens
    k, v = keys[:, :, begin:end], values[:, :, begin:end]
    here = torch.arange(first, end, device=q.device)
    distance = here[:, None] - torch.arange(begin, end, device=q.device)
    seen = distance >= 0
    if spec.window is not None:
        seen &= distance < spec.window
    heads = (batch, tokens, spec.kv_heads, group, spec.size)
    grouped = q.reshape(heads).permute(0, 2, 3, 1, 4).flatten(2, 3)
    if slopes is None and not spec.explicit:
        y = F.scaled_dot_product_attention(grouped, k, v, attn_mask=seen.repeat(group, 1), scale=spec.scale)  # fmt: skip
    else:
        scores = (grouped.float() @ k.float().transpose(2, 3)).mul_(spec.scale)
        if spec.softcap is not None:
            scores = scores.div_(spec.softcap).tanh_().mul_(spec.softcap)
        scores = scores.view(batch, spec.kv_heads, group, tokens, -1)
        if slopes is not None:
            scores -= slopes.view(spec.kv_heads, group, 1, 1) * distance
        scores = scores.masked_fill_(~seen, -math.inf).flatten(1, 2)
        probabilities = softmax(scores, spec.sinks).view(batch, spec.kv_heads, group * tokens, -1)
        y = probabilities.to(v.dtype) @ v
    return y.reshape(batch, spec.kv_heads, group, tokens, -1).permute(0, 3, 1, 2, 4).flatten(2)


def rotated(
    x: Tensor, tables: tuple[Tensor, Tensor], positions: Tensor, spec: AttentionSpec
) -> Tensor:
    """Queries or keys ``[tokens, heads * size]``, rotated apart from the cache, for norms that come after the rotation."""
    heads = x.view(1, len(x), -1, spec.size).transpose(1, 2)
    y = turned(heads, tables, positions[None], spec.interleaved)
    return y.transpose(1, 2).reshape(x.shape)


def turned(x: Tensor, tables: tuple[Tensor, Tensor], ids: Tensor, interleaved: bool) -> Tensor:
    """``[b, h, t, d]`` at positions ``[b, t]``, rotated in float32."""
    cos, sin = (table[ids][:, None] for table in tables)
    if interleaved:
        cos, sin = (table.repeat_interleave(2, dim=-1) for table in (cos, sin))
    else:
        cos, sin = (torch.cat([table, table], dim=-1) for table in (cos, sin))
    return rotate(x.float(), (cos, sin), interleaved).to(x.dtype)


def normed(x: Tensor, norm: NormWeights | None, size: int, by_head: bool) -> Tensor:
    """Queries or keys ``[tokens, heads * size]``, normalised per head or over all heads."""
    if norm is None:
        return x
    kind = "rms" if norm.rms else "layer"
    prologue = Prologue(norm=kind, weight=norm.weight, bias=norm.bias, eps=norm.eps)
    return apply(x.reshape(-1, size) if by_head else x, prologue).view(len(x), -1)
