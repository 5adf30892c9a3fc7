"""The mixed linear on a GPU: its two modes, built from the kernels, and the choice between them.

- ``w8a8``: ``quantize`` (including the preceding norm or activation function), then ``gemm`` (with bias and residual). Inputs
  that keep 16-bit activations on a CPU, as they are heavy-tailed, have smaller blocks of channels with a scale.
- ``w8a16``: that norm or function alone, unless ``gemv`` applies the norm, then ``gemv`` or ``skinny`` (with bias, gate and residual).

An input is passed as ``Operand``, a matrix with a pending prologue, which the next kernel to read it applies on the fly. The mode
depends on the number of tokens, by the table's crossover.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..dispatch import Mode
from ..weight import MixedWeight
from . import launch as L
from .configs import choose
from .gemm import gemm
from .prologue import NO_PROLOGUE, Prologue
from .quantize import HEAVY_BLOCK, SCALE_BLOCK, QuantizedTokens, apply, quantize
from .skinny import MAX_TOKENS, takes_norm, w8a16


@dataclass(frozen=True)
class Operand:
    """16-bit ``[tokens, in]`` to which ``prologue`` has yet to be applied."""

    x: Tensor
    prologue: Prologue = NO_PROLOGUE

    def value(self) -> Tensor:
        """The matrix with ``prologue`` applied."""
        return self.x if self.prologue.is_empty else apply(self.x, self.prologue)


def mode_for(tokens: int, device: torch.device) -> Mode:
    """The faster mode for a number of tokens on this GPU."""
    most = choose("crossover", L.capability(device))["w8a16_tokens"]
    return "w8a16" if tokens <= most else "w8a8"


def linear(
    operand: Operand,
    weight: MixedWeight,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    mode: Mode | None = None,
) -> Tensor:
    """``x @ weight^T + bias + residual``: 16-bit ``[tokens, out]``.

    Args:
        operand: 16-bit ``[tokens, in]``.
        weight: int8 ``[out, in]`` with scales and outlier columns, as the file holds it.
        bias: float ``[out]``.
        residual: 16-bit ``[tokens, out]``.
        mode: None: the faster one.

    Raises:
        ArgumentError: a shape, dtype or stride is invalid.
    """
    mode = _mode(mode, operand)
    if mode == "w8a8":
        return gemm(_quantized(operand, weight), weight, bias, residual)
    return _few(operand, weight, bias, residual, "none")


def gated(
    operand: Operand,
    weight: MixedWeight,
    bias: Tensor | None = None,
    *,
    activation: str,
    mode: Mode | None = None,
) -> Operand:
    """``act(x @ gate^T) * (x @ up^T)`` for a weight ``[gate; up]``; in ``w8a8`` the elementwise product is left to the next kernel.

    Raises:
        ArgumentError: as for ``linear``.
    """
    mode = _mode(mode, operand)
    if mode == "w8a16":
        return Operand(_few(operand, weight, bias, None, activation))
    gate, up = gemm(_quantized(operand, weight), weight, bias).chunk(2, dim=1)
    return Operand(gate, Prologue(activation=activation, times=up))


def _mode(mode: Mode | None, operand: Operand) -> Mode:
    return mode or mode_for(operand.x.shape[0], operand.x.device)


def _quantized(operand: Operand, weight: MixedWeight) -> QuantizedTokens:
    has_outliers = weight.outlier_index is not None and weight.outlier_index.shape[0] > 0
    return quantize(
        operand.x, operand.prologue,
        index=weight.outlier_index if has_outliers else None,
        is_outlier=weight.is_outlier if has_outliers else None,
        threshold=weight.threshold,
        counts=None if weight.counter is None else weight.counter.counts,
        block=HEAVY_BLOCK if weight.activation_bits == 16 else SCALE_BLOCK,
    )  # fmt: skip


def _few(
    operand: Operand, weight: MixedWeight, bias: Tensor | None, residual: Tensor | None, activation: str
) -> Tensor:  # fmt: skip
    """Any number of tokens in ``w8a16``, ``MAX_TOKENS`` at a time."""
    if takes_norm(operand.x, operand.prologue):
        return w8a16(operand.x, weight, bias, residual, activation=activation, norm=operand.prologue)  # fmt: skip
    x = operand.value()
    if x.shape[0] <= MAX_TOKENS:
        return w8a16(x, weight, bias, residual, activation=activation)
    parts = [slice(i, i + MAX_TOKENS) for i in range(0, x.shape[0], MAX_TOKENS)]
    rests = [None if residual is None else residual[part] for part in parts]
    return torch.cat([
        w8a16(x[part], weight, bias, rest, activation=activation)
        for part, rest in zip(parts, rests, strict=True)
    ])  # fmt: skip
