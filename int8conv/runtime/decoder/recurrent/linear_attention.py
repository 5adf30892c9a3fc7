"""Linear attention whose state forgets, for Gated DeltaNet and Mamba 2: a recurrence for single tokens, matrix products for prompts.

Per head, with the state ``S [key_size, value_size]``, in float32:

    S <- exp(g) S;   u = beta (v - k S) or v;   S <- S + k^T u;   y = q S

With beta the rule corrects what the state knows of a key (the delta rule, arXiv:2412.06464); without, it only adds (Mamba 2,
arXiv:2405.21060, section 6). A prompt takes ``CHUNK`` tokens at a time: with ``c`` the sums of g within the chunk and
``D_ij = exp(c_i - c_j)`` for i >= j,

    U = v,   or the solution of (I + beta (k k^T * D below its diagonal)) U = beta (v - exp(c) k S)
    y = exp(c) q S + (q k^T * D) U;   S <- exp(c_last) S + (exp(c_last - c) k)^T U
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...models.recurrence import CHUNK


def attend_linearly(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor | None, state: Tensor, chunk: int = CHUNK
) -> Tensor:  # fmt: skip
    """The rule, chunk by chunk.

    Args:
        q: float32 ``[b, heads, t, key_size]``; k likewise.
        k: see q.
        v: float32 ``[b, heads, t, value_size]``.
        g: logarithm of what is kept, float32 ``[b, heads, t]``; beta likewise.
        beta: see g; None: values are added as they are.
        state: float32 ``[b, heads, key_size, value_size]``, updated in place.
        chunk: tokens at a time.

    Returns:
        float32 ``[b, heads, t, value_size]``.
    """
    y = torch.empty_like(v)
    for first in range(0, v.shape[2], chunk):
        part = slice(first, first + chunk)
        write = None if beta is None else beta[:, :, part, None]
        y[:, :, part] = _chunk(q[:, :, part], k[:, :, part], v[:, :, part], g[:, :, part], write, state)  # fmt: skip
    return y


def _chunk(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor | None, state: Tensor
) -> Tensor:
    total = g.cumsum(-1)
    kept = total.exp()[..., None]
    change = v if beta is None else beta * (v - (k * kept) @ state)
    y = (q * kept) @ state
    if v.shape[2] > 1:
        pairs = total[..., :, None] - total[..., None, :]
        above = torch.ones(pairs.shape[-2:], dtype=torch.bool, device=v.device).triu(1)
        pairs = pairs.masked_fill_(above, -math.inf).exp_()
        if beta is not None:
            system = beta * (k @ k.transpose(-1, -2)) * pairs
            change = torch.linalg.solve_triangular(system, change, upper=False, unitriangular=True)
        y += ((q @ k.transpose(-1, -2)) * pairs) @ change
    else:
        y += (q * k).sum(-1, keepdim=True) * change
    rest = (total[..., -1:] - total).exp()[..., None]
    state.mul_(kept[..., -1:, :]).add_((k * rest).transpose(-1, -2) @ change)
    return y
