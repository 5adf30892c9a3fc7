"""The weight of the mixed linear, and the count of what its outlier fallback takes."""

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
    """Magnitude from which the outlier fallback of ``w8a8`` takes an activation; None: no fallback. 0.0: all of them, so that the
    whole input is multiplied in 16 bits."""
    counter: FallbackCounter | None = None
    """Told what the fallback takes; not at a threshold of 0.0, where that is everything."""

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


class FallbackCounter:
    """What the outlier fallback of one input has taken, counted where the activations are."""

    def __init__(self, in_features: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(2 + in_features, dtype=torch.int64, device=device)
        """Tokens, tokens with at least one value taken, then values of each channel: what a kernel adds to."""

    @property
    def tokens(self) -> int:
        """Tokens that went through W8A8."""
        return int(self.counts[0])

    @property
    def fallback_tokens(self) -> int:
        """Tokens with at least one value taken."""
        return int(self.counts[1])

    @property
    def fallback(self) -> Tensor:
        """Values taken, of each channel: int64 ``[in]``, on the CPU."""
        return self.counts[2:].cpu()

    def add(self, tokens: int, fallback: Tensor) -> None:
        """Count a call of so many tokens; bool ``[r, in]`` where the fallback took a value of one of the r tokens concerned."""
        self.counts[0] += tokens
        if len(fallback):
            self.counts[1] += len(fallback)
            self.counts[2:] += fallback.sum(dim=0)
