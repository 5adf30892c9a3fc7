"""The outlier columns of one rank of tensor parallelism."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

_ALIGNED: Final = 16
"""GPU kernels take outlier columns by as many."""


def own_columns(index: Tensor, columns: Tensor, first: int, size: int) -> tuple[Tensor, Tensor]:
    """The outlier columns among ``size`` input channels from ``first`` on, with their numbers there; perhaps none.

    Args:
        index: int32 ``[k]``.
        columns: ``[out, k]``.
        first: first channel of the rank.
        size: number of its channels.
    """
    mine = (index >= first) & (index < first + size)
    return index[mine] - first, columns[:, mine].contiguous()


def aligned(index: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with a multiple of 16 columns: the last channel again, with weights of zero."""
    missing = -len(index) % _ALIGNED
    if not missing or not len(index):
        return index, columns
    zeros = columns.new_zeros(len(columns), missing)
    return torch.cat([index, index[-1:].expand(missing)]), torch.cat([columns, zeros], dim=1)
