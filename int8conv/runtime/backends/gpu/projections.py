"""Linears of one input, in the memory of a GPU; imports triton."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from ....kernels.dispatch import Mode
from ....kernels.gpu.linear import Operand, linear
from ....kernels.gpu.linear import gated as gated_linear
from ....kernels.gpu.prologue import Prologue
from ....kernels.weight import MixedWeight
from ...models.config import Activation
from ...weights.projections import SplitProjection
from ..parts import Hidden
from .deferred import operand_of


class DeviceProjection(ABC):
    """A ``Projection`` that can defer an activation function to its reader."""

    @abstractmethod
    def inner(self, x: Operand, activation: Activation, gated: bool) -> Operand:
        """The FFN up to, but without, its last linear."""


class QuantizedProjection(DeviceProjection):
    """Linears of one input as one int8 matrix."""

    def __init__(self, weight: MixedWeight, bias: Tensor | None, sizes: Sequence[int], mode: Mode | None) -> None:  # fmt: skip
        self.weight = weight
        self.bias = bias
        self.sizes = list(sizes)
        self.mode = mode

    def __call__(self, x: Hidden, *, residual: Tensor | None = None) -> Sequence[Tensor]:
        rows, shape = operand_of(x)
        rest = None if residual is None else residual.reshape(-1, residual.shape[-1])
        y = linear(rows, self.weight, self.bias, rest, mode=self.mode)
        return y.view(*shape, -1).split_with_sizes(self.sizes, dim=-1)

    def inner(self, x: Operand, activation: Activation, gated: bool) -> Operand:
        if gated:  # [gate; up], as two linears or one
            return gated_linear(x, self.weight, self.bias, activation=activation, mode=self.mode)
        y = linear(x, self.weight, self.bias, mode=self.mode)
        return Operand(y, Prologue(activation=activation))


class DenseProjection(DeviceProjection):
    """Linears of one input with 16-bit weights."""

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor | None]]) -> None:
        self.pairs = pairs

    def __call__(self, x: Hidden, *, residual: Tensor | None = None) -> Sequence[Tensor]:
        rows, shape = operand_of(x)
        outputs = [y.view(*shape, -1) for y in self._multiply(rows)]
        return outputs if residual is None else [residual + outputs[0]]

    def inner(self, x: Operand, activation: Activation, gated: bool) -> Operand:
        return inner_of(self._multiply(x), activation, gated)

    def _multiply(self, x: Operand) -> list[Tensor]:
        value = x.value()
        return [F.linear(value, weight.to(value.dtype), bias) for weight, bias in self.pairs]


class SplitDeviceProjection(SplitProjection, DeviceProjection):
    """Linears of one input that do not form one matrix: usually some in int8 and some in 16 bits."""

    def inner(self, x: Operand, activation: Activation, gated: bool) -> Operand:
        return inner_of(self(x.value()), activation, gated)


def inner_of(outputs: Sequence[Tensor], activation: Activation, gated: bool) -> Operand:
    """From gate and up ``[tokens, inner]``, from both in one tensor, or from up alone."""
    first, *rest = outputs[0].chunk(2, dim=-1) if gated and len(outputs) == 1 else outputs
    return Operand(first, Prologue(activation=activation, times=rest[0] if rest else None))
