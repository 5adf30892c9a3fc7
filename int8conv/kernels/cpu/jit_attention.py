# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, call-arg"
"""Attention of one token per sequence, compiled by numba."""

from __future__ import annotations

import numpy as np
from numba import prange

from .jit_cache import compiled
from .jit_primitives import exp


@compiled()
def _position(x, b, head, gain, eps, cos, sin, interleaved):
    """Norm and rotation of a head, in place; cos and sin hold each pair's value twice, adjacent if ``interleaved``."""
    size = x.shape[2]
    if gain.shape[0]:
        total = np.float32(0)
        for i in range(size):
            total += x[b, head, i] * x[b, head, i]
        scale = np.float32(1) / np.sqrt(total / np.float32(size) + np.float32(eps))
        for i in range(size):
            x[b, head, i] *= scale * gain[i]
    half = cos.shape[1] // 2
    if interleaved:
        for i in range(0, 2 * half, 2):
            y, z = x[b, head, i], x[b, head, i + 1]
            x[b, head, i] = y * cos[b, i] - z * sin[b, i]
            x[b, head, i + 1] = z * cos[b, i] + y * sin[b, i]
        return
    for i in range(half):
        y, z = x[b, head, i], x[b, head, i + half]
        x[b, head, i] = y * cos[b, i] - z * sin[b, i]
        x[b, head, i + half] = z * cos[b, i] + y * sin[b, i]


@compiled()
def _scores(q, keys, b, head, kv, first, scale, softcap, slopes, scores):
    """Scores of a query with the keys from position ``first`` up to its own. Returns the highest."""
    count = scores.shape[0]
    for s in range(count):
        total = np.float32(0)
        for i in range(q.shape[2]):
            total += q[b, head, i] * keys[b, kv, first + s, i]
        scores[s] = total * np.float32(scale)
    if softcap:
        cap = np.float32(softcap)
        for s in range(count):  # cap tanh(y / cap)
            scores[s] = cap - np.float32(2) * cap / (
                np.float32(1) + exp(np.float32(2) * scores[s] / cap)
            )
    if slopes.shape[0]:
        for s in range(count):
            scores[s] -= slopes[head] * np.float32(count - 1 - s)
    highest = np.float32(-np.inf)
    for s in range(count):
        highest = max(highest, scores[s])
    return highest


@compiled()
def _values(scores, highest, values, b, head, kv, first, out):
    """Softmax of the scores, times the values."""
    total = np.float32(0)
    for s in range(scores.shape[0]):
        scores[s] = exp(scores[s] - highest)
        total += scores[s]
    for i in range(out.shape[2]):
        out[b, head, i] = 0
    for s in range(scores.shape[0]):
        weight = scores[s] / total
        for i in range(out.shape[2]):
            out[b, head, i] += weight * values[b, kv, first + s, i]


@compiled(parallel=True)
def attend(
    q, k, v, query_gain, key_gain, eps, cos, sin, interleaved, keys, values, lengths, scale, softcap, slopes, window, out,
):  # fmt: skip
    """Attention of one token per sequence, whose key and value are stored in the cache at ``lengths``.

    Shapes: q and out float32 ``[b, h, d]``; k and v ``[b, kv_heads, d]``; gains of per-head RMSNorms ``[d]`` or ``[0]``; cos and
    sin ``[b, rotated]``; keys and values ``[b, kv_heads, capacity, d]``; lengths int64 ``[b]``; ALiBi slopes ``[h]`` or ``[0]``;
    softcap 0: none; window 0: all positions. q and k are modified. Raises IndexError if the cache is full.
    """
    batch, heads, kv_heads = q.shape[0], q.shape[1], k.shape[1]
    for b in range(batch):
        if lengths[b] >= keys.shape[2]:
            raise IndexError("the cache is full")
        for kv in range(kv_heads):
            _position(k, b, kv, key_gain, eps, cos, sin, interleaved)
            for i in range(k.shape[2]):
                keys[b, kv, lengths[b], i] = k[b, kv, i]
                values[b, kv, lengths[b], i] = v[b, kv, i]
    for task in prange(batch * heads):
        b, head = task // heads, task % heads
        kv = head // (heads // kv_heads)
        _position(q, b, head, query_gain, eps, cos, sin, interleaved)
        end = lengths[b] + 1
        first = max(0, end - window) if window else 0
        scores = np.empty(end - first, np.float32)
        highest = _scores(q, keys, b, head, kv, first, scale, softcap, slopes, scores)
        _values(scores, highest, values, b, head, kv, first, out)
