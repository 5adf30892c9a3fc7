"""Linears of one input, on a CPU or any other PyTorch device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ...kernels.dispatch import Mode, dense_linear, mixed_linear
from ...kernels.weight import MixedWeight
from ..backends.parts import Hidden, Projection, tensor_of
from ..decoder.working_sizes import FOLDED_AT_ONCE, FOLDED_ON_GPU


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


@runtime_checkable
class HasWeight(Protocol):
    """A projection on some device whose linears are one int8 matrix."""

    @property
    def weight(self) -> MixedWeight: ...


@runtime_checkable
class HasPairs(Protocol):
    """A projection on some device with 16- or 32-bit weights."""

    @property
    def pairs(self) -> Sequence[tuple[Tensor, Tensor | None]]: ...


def by_head(projection: Projection, x: Tensor, part: slice, *, turned: bool) -> Tensor:
    """Each head's vectors times ``part`` of its own rows of a single linear, as in W8A16.

    int8 rows are widened, some heads at a time, and no more than that: scales and outlier columns are applied to vectors.

    Args:
        projection: its rows are those of the heads, one after another.
        x: ``[b, heads, t, in]``; if ``turned``, ``[b, heads, t, rows]``.
        part: of each head's rows.
        turned: whether to multiply by the rows themselves, or by their transpose.

    Returns:
        ``[b, heads, t, rows]``; if ``turned``, ``[b, heads, t, in]``.
    """
    batch, heads, tokens, _ = x.shape
    vectors = x.transpose(0, 1).flatten(1, 2)
    if isinstance(projection, HasPairs):
        y = _products(_rows(projection.pairs[0][0], heads, part), vectors, turned)
    else:
        assert isinstance(projection, HasWeight)
        y = _mixed_by_head(projection.weight, vectors, part, turned)
    return y.view(heads, batch, tokens, -1).transpose(0, 1).to(x.dtype)


def _mixed_by_head(weight: MixedWeight, vectors: Tensor, part: slice, turned: bool) -> Tensor:
    heads = len(vectors)
    codes = _rows(weight.codes, heads, part)
    scale = weight.scale.view(heads, 1, -1)[..., part]
    y = _products(codes, vectors * scale, True) if turned else _products(codes, vectors, False) * scale  # fmt: skip
    if weight.outlier_index is None or weight.outlier_weight is None:
        return y
    columns = weight.outlier_index.long()
    exact = _rows(weight.outlier_weight, heads, part).to(vectors.dtype)
    if turned:
        y[..., columns] += vectors @ exact
        return y
    return y + vectors[..., columns] @ exact.transpose(1, 2)


def _rows(matrix: Tensor, heads: int, part: slice) -> Tensor:
    """``[out, columns]`` -> ``[heads, rows, columns]``."""
    return matrix.view(heads, -1, matrix.shape[-1])[:, part]


def _products(rows: Tensor, vectors: Tensor, turned: bool) -> Tensor:
    """``[heads, n, .]`` times ``[heads, rows, in]`` or its transpose, which is widened some heads at a time."""
    limit = FOLDED_AT_ONCE if rows.device.type == "cpu" else FOLDED_ON_GPU
    at_once = max(1, limit // rows[0].numel())
    parts = []
    for begin in range(0, len(rows), at_once):
        some = rows[begin : begin + at_once].to(vectors.dtype)
        few = vectors[begin : begin + at_once]
        parts.append(few @ (some if turned else some.transpose(1, 2)))
    return torch.cat(parts)


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
