"""The weight of the mixed linear, and the count of what its safety net takes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class MixedWeight:
    """An int8 weight ``[out, in]`` with k outlier columns, as the file holds it."""

    codes: Tensor
    """int8 ``[out, in]``, contiguous; zero in outlier columns."""
    scale: Tensor
    """float32 ``[out]``: weight = code * scale."""
    outlier_index: Tensor | None = None
    """int32 ``[k]``, ascending."""
    outlier_weight: Tensor | None = None
    """float16 or bfloat16 ``[out, k]``."""
    threshold: float | None = None
    """Magnitude from which the safety net of ``w8a8`` takes an activation; None: no net. 0.0: all of them, so that the
    whole input is multiplied in 16 bits."""
    counter: NetCounter | None = None
    """Told what the net takes, by ``reference`` and ``cpu``; not at a threshold of 0.0, where that is everything."""

    @cached_property
    def is_outlier(self) -> Tensor | None:
        """int8 ``[in]``, 1 in outlier columns; made at the first use, one byte for each input channel."""
        if self.outlier_index is None:
            return None
        marks = torch.zeros(self.in_features, dtype=torch.int8, device=self.codes.device)
        return marks.index_fill_(0, self.outlier_index.long(), 1)

    @property
    def out_features(self) -> int:
        return self.codes.shape[0]

    @property
    def in_features(self) -> int:
        return self.codes.shape[1]


class NetCounter:
    """What the safety net of one input has taken."""

    def __init__(self, in_features: int) -> None:
        self.tokens = 0
        """Tokens that went through W8A8."""
        self.caught = torch.zeros(in_features, dtype=torch.int64)
        """Values taken, of each channel ``[in]``."""
        self.tokens_caught = 0
        """Tokens with at least one."""

    def add(self, tokens: int, caught: Tensor) -> None:
        """Count a call of so many tokens; bool ``[r, in]`` where the net took a value of one of the r tokens concerned."""
        self.tokens += tokens
        self.tokens_caught += len(caught)
        if len(caught):
            self.caught += caught.sum(dim=0).cpu()
