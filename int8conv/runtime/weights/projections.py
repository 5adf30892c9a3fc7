"""Linears of one input, on a CPU or any other PyTorch device."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...kernels.dispatch import Mode, dense_linear, mixed_linear
from ...kernels.weight import MixedWeight, dequantized_rows
from ..backends.parts import Hidden, Projection, tensor_of


class MixedProjection:
    """Linears of one input as one int8 matrix.

    Args:
        weight: the rows of all linears, concatenated.
        bias: ``[out]`` or None.
        sizes: number of rows of each linear.
        mode: as for ``mixed_linear``.
    """

    def __init__(self, weight: MixedWeight, bias: Tensor | None, sizes: Sequence[int], mode: Mode | None) -> None:  # fmt: skip
        self.weight = weight
        self.bias = bias
        self.sizes = list(sizes)
        self.mode = mode

    def __call__(self, x: Hidden, *, residual: Tensor | None = None) -> Sequence[Tensor]:
        y = mixed_linear(tensor_of(x), self.weight, self.bias, mode=self.mode)
        return y.split_with_sizes(self.sizes, dim=-1) if residual is None else [residual + y]


def rows_of(projection: Projection, rows: slice) -> Tensor:
    """Rows of the weight of a single linear, ``[rows, in]``; dequantized to float32 if it is int8."""
    if isinstance(projection, MixedProjection):
        return dequantized_rows(projection.weight, rows)
    assert isinstance(projection, DenseProjection)
    return projection.pairs[0][0][rows]


class DenseProjection:
    """Linears of one input with 16- or 32-bit weights, each given as a matrix and an optional bias."""

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor | None]]) -> None:
        self.pairs = pairs

    def __call__(self, x: Hidden, *, residual: Tensor | None = None) -> Sequence[Tensor]:
        value = tensor_of(x)
        outputs = [dense_linear(value, weight, bias) for weight, bias in self.pairs]
        return outputs if residual is None else [residual + outputs[0]]


class SplitProjection:
    """Linears of one input that do not form one matrix.

    Args:
        parts: projections of that input.
        order: for each linear, its index among the outputs of all parts.
    """

    def __init__(self, parts: Sequence[Projection], order: Sequence[int]) -> None:
        self.parts = parts
        self.order = order

    def __call__(self, x: Hidden, *, residual: Tensor | None = None) -> Sequence[Tensor]:
        assert residual is None  # only supported for a single linear
        value = tensor_of(x)  # once for all parts
        outputs = [y for multiply in self.parts for y in multiply(value)]
        return [outputs[number] for number in self.order]
