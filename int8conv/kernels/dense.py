"""A plain linear whose weight may be stored in fewer bits than the activations have."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .cpu import jit

_BLOCK_ELEMENTS = 1 << 19
"""2 MiB in float32: a widened block stays in the cache until it is multiplied."""


def dense_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight^T + bias``; a weight of another dtype is widened a block of rows at a time, never whole.

    Args:
        x: float ``[..., in]``.
        weight: float ``[out, in]``.
        bias: ``[out]`` or None.

    Returns:
        ``[..., out]`` in the dtype of ``x``.
    """
    bias = None if bias is None else bias.to(x.dtype)
    if weight.dtype == x.dtype:
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    narrow = x.dtype == torch.float32 and weight.dtype in (torch.float16, torch.bfloat16)
    y = (
        jit.dense(rows, weight)
        if narrow and jit.takes(rows, weight)
        else linear_by_blocks(rows, weight)
    )
    y = y if bias is None else y + bias
    return y.reshape(*x.shape[:-1], weight.shape[0])


def linear_by_blocks(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight^T`` for ``x`` ``[tokens, in]`` and a weight ``[out, in]`` of any dtype, widened block by block."""
    out_features, in_features = weight.shape
    y = x.new_empty(x.shape[0], out_features)
    step = max(1, _BLOCK_ELEMENTS // max(in_features, 1))
    for first in range(0, out_features, step):
        block = weight[first : first + step].to(x.dtype)
        if step >= out_features:
            return torch.mm(x, block.t(), out=y)
        y[:, first : first + step] = x @ block.t()
    return y
