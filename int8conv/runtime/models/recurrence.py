"""The parameters of layers with a state of fixed size in place of attention, or beside it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar, Final, Literal

CHUNK: Final = 64
"""Tokens of a prompt that a recurrent layer takes at once."""


class Recurrence:
    """What a cache and the footprint have to know of a recurrent layer; sizes in channels."""

    label: ClassVar[str]
    """What users call such layers."""
    kernel: int
    """Inputs of its causal convolution, the newest included."""

    @property
    def heads(self) -> int:
        """Heads of the state; 0: the layer has nothing but its convolution."""
        raise NotImplementedError

    @property
    def sizes(self) -> tuple[int, int]:
        """Rows and columns of a head's state: channels of a key and of a value."""
        raise NotImplementedError

    @property
    def channels(self) -> int:
        """Channels of the convolution."""
        raise NotImplementedError

    @property
    def wide(self) -> int:
        """Outputs of the large linears that read the layer's input."""
        raise NotImplementedError

    def shapes(self, batch: int) -> tuple[tuple[int, int, int, int], tuple[int, int, int]]:
        """The shapes of a layer's state, both float32: matrix and last inputs of the convolution."""
        return (batch, self.heads, *self.sizes), (batch, self.channels, self.kernel - 1)

    def nbytes(self, batch: int) -> int:
        """Size of a layer's state."""
        return 4 * sum(prod(shape) for shape in self.shapes(batch))


@dataclass(frozen=True)
class Delta(Recurrence):
    """Gated DeltaNet (``decoder.recurrent.delta_net``)."""

    label = "Gated DeltaNet layers"
    key_heads: int
    value_heads: int
    key_size: int
    value_size: int
    kernel: int

    @property
    def heads(self) -> int:
        return self.value_heads

    @property
    def sizes(self) -> tuple[int, int]:
        return self.key_size, self.value_size

    @property
    def keys(self) -> int:
        return self.key_heads * self.key_size

    @property
    def values(self) -> int:
        return self.value_heads * self.value_size

    @property
    def channels(self) -> int:
        """Queries, keys and values."""
        return 2 * self.keys + self.values

    @property
    def wide(self) -> int:
        return self.channels + self.values


@dataclass(frozen=True)
class Mamba(Recurrence):
    """Mamba 2 (``decoder.recurrent.mamba``)."""

    label = "Mamba 2 layers"
    value_heads: int
    head_size: int
    groups: int
    """Heads of one group share B and C."""
    state_size: int
    kernel: int
    norm: Literal["gate first", "norm first"] | None
    """The RMSNorm of the output: of the gated one, or before the gate; None: only the gate."""
    conv_bias: bool = True
    in_bias: bool = False
    out_bias: bool = False
    step_limits: tuple[float, float] = (0.0, float("inf"))
    """The step size is clamped to this."""
    scales: tuple[float, float, float, float, float] = (1.0, 1.0, 1.0, 1.0, 1.0)
    """Multipliers of z, x, B, C and the step size before its bias, all outputs of the first linear."""

    @property
    def heads(self) -> int:
        return self.value_heads

    @property
    def sizes(self) -> tuple[int, int]:
        return self.state_size, self.head_size

    @property
    def values(self) -> int:
        return self.value_heads * self.head_size

    @property
    def keys(self) -> int:
        return self.groups * self.state_size

    @property
    def channels(self) -> int:
        """x, B and C."""
        return self.values + 2 * self.keys

    @property
    def wide(self) -> int:
        return self.values + self.channels + self.value_heads


@dataclass(frozen=True)
class ShortConv(Recurrence):
    """A gated convolution over a few tokens (``decoder.recurrent.short_conv``)."""

    label = "short convolutions"
    size: int
    kernel: int
    bias: bool = False

    @property
    def heads(self) -> int:
        return 0

    @property
    def sizes(self) -> tuple[int, int]:
        return 0, 0

    @property
    def channels(self) -> int:
        return self.size

    @property
    def wide(self) -> int:
        return 3 * self.size
