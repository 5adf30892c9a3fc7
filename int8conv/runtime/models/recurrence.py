"""The parameters of layers with a recurrent state in place of attention."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Final

CHUNK: Final = 64
"""Tokens of a prompt that a recurrent layer takes at once."""


@dataclass(frozen=True)
class Delta:
    """Gated DeltaNet (``decoder.delta_net``); sizes in channels."""

    key_heads: int
    value_heads: int
    key_size: int
    value_size: int
    kernel: int
    """Inputs of its causal convolution, the newest included."""

    @property
    def keys(self) -> int:
        return self.key_heads * self.key_size

    @property
    def values(self) -> int:
        return self.value_heads * self.value_size

    @property
    def channels(self) -> int:
        """Channels of the convolution: queries, keys and values."""
        return 2 * self.keys + self.values

    def shapes(self, batch: int) -> tuple[tuple[int, int, int, int], tuple[int, int, int]]:
        """The shapes of a layer's state, both float32: matrix and last inputs of the convolution."""
        matrix = (batch, self.value_heads, self.key_size, self.value_size)
        return matrix, (batch, self.channels, self.kernel - 1)

    def nbytes(self, batch: int) -> int:
        """Size of a layer's state."""
        return 4 * sum(prod(shape) for shape in self.shapes(batch))
