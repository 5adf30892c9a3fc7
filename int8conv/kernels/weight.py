"""The weight of the mixed linear, and a counter for its outlier fallback."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class MixedWeight:
    """An int8 weight ``[out, in]`` with k outlier columns, as stored in the file."""

    codes: Tensor
    """int8 ``[out, in]``, contiguous; zero in outlier columns."""
    scale: Tensor
    """float32 ``[out]``: weight = code * scale."""
    outlier_index: Tensor | None = None
    """int32 ``[k]``, ascending."""
    outlier_weight: Tensor | None = None
    """float16 or bfloat16 ``[out, k]``."""
    threshold: float | None = None
    """Magnitude from which ``w8a8`` multiplies an activation in 16 bits (the outlier fallback; a GPU only counts it); None: no fallback."""
    counter: FallbackCounter | None = None
    """Counts values in the fallback."""
    activation_bits: Literal[8, 16] = 8
    """Activation bits of this input in ``w8a8``. 16 if its values have too wide a range for int8: it is then multiplied as in
    ``w8a16`` (on a CPU, rounded to two int8 digits; on a GPU, to int8 with a scale per 64 channels), without a fallback and without counting."""

    @cached_property
    def is_outlier(self) -> Tensor | None:
        """int8 ``[in]``, 1 in outlier columns; created on first use, one byte per input channel."""
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
    """Counts the values in the outlier fallback of one input, on the device of the activations."""

    def __init__(self, in_features: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(2 + in_features, dtype=torch.int64, device=device)
        """Tokens, tokens with at least one value in the fallback, then values per channel; kernels add to it."""

    @property
    def tokens(self) -> int:
        """Number of tokens computed in W8A8."""
        return int(self.counts[0])

    @property
    def fallback_tokens(self) -> int:
        """Number of tokens with at least one value in the fallback."""
        return int(self.counts[1])

    @property
    def fallback(self) -> Tensor:
        """Number of values in the fallback per channel: int64 ``[in]``, on the CPU."""
        return self.counts[2:].cpu()

    def add(self, tokens: int, fallback: Tensor) -> None:
        """Count a call with ``tokens`` tokens; ``fallback`` is bool ``[r, in]``, True for values in the fallback, for r affected tokens."""
        self.counts[0] += tokens
        if len(fallback):
            self.counts[1] += len(fallback)
            self.counts[2:] += fallback.sum(dim=0)


def dequantized_rows(weight: MixedWeight, rows: Tensor | slice) -> Tensor:
    """Rows of the weight for row numbers ``[...]``, or a slice of them: float32 ``[..., in]``; what an embedding looks up."""
    values = weight.codes[rows].float() * weight.scale[rows].unsqueeze(-1)
    if weight.outlier_index is not None and weight.outlier_weight is not None:
        values[..., weight.outlier_index.long()] = weight.outlier_weight[rows].float()
    return values
