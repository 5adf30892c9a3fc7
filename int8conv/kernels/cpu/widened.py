"""Linears on a CPU with float32 products: the weight is widened a block of rows at a time. Runs on any CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tokens import rounded_in_blocks
from ..weight import MixedWeight
from . import columns

BLOCK = 64
"""Channels with a scale of their own in ``w8a8``. Products of float32 would not be faster with fewer scales."""

_BLOCK_ELEMENTS = 1 << 19
"""2 MiB in float32: a widened block stays in the cache until it is multiplied."""


def w8a8(x: Tensor, weight: MixedWeight) -> Tensor:
    """int8 activations: float32 ``[tokens, in]`` -> float32 ``[tokens, out]``, outlier columns included, without bias."""
    return columns.w8a8(x, weight, int8=_in_blocks, int16=linear, exact=linear)


def w8a16(x: Tensor, weight: MixedWeight) -> Tensor:
    """float activations: float32 ``[tokens, in]`` -> float32 ``[tokens, out]``, outlier columns included, without bias."""
    return columns.w8a16(x, weight, exact=linear)


def _in_blocks(x: Tensor, codes: Tensor) -> Tensor:
    return linear(rounded_in_blocks(x, BLOCK), codes)


def linear(x: Tensor, weight: Tensor) -> Tensor:
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
