# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
# ruff: noqa: N803
"""The prologue of a kernel: the norm or activation function applied to a token's values as they are read.

    rms:  x / sqrt(mean(x^2) + eps) * weight        layer:  (x - mean) / sqrt(var + eps) * weight + bias
    act(x) [* times]

Rounds to 16 bits wherever PyTorch's operators would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import triton
import triton.language as tl
from torch import Tensor

from ...errors import ArgumentError
from . import launch as L
from .primitives import activate, narrow


@dataclass(frozen=True)
class Prologue:
    """A norm (with ``weight``, ``bias``, ``eps``), or an ``activation``, optionally multiplied by ``times``."""

    norm: str = "none"
    """"none", "rms" or "layer"."""
    weight: Tensor | None = None
    """In the dtype of the tokens; or float32, in which case the values it multiplies are not rounded first."""
    bias: Tensor | None = None
    eps: float = 0.0
    activation: str = "none"
    """"none", "silu", "gelu", "gelu_tanh", "relu" or "relu2"."""
    times: Tensor | None = None
    """Has the shape of the input."""

    @property
    def is_empty(self) -> bool:
        return self.norm == "none" and self.activation == "none"

    def check(self, x: Tensor) -> None:
        """Check that it is applicable to 16-bit tokens ``[tokens, channels]``.

        Raises:
            ArgumentError: a shape, dtype or stride is invalid.
        """
        L.check_rows("x", x, x.shape[-1])
        if self.times is None:
            return
        L.check_rows("times", self.times, x.shape[1])
        if self.times.shape != x.shape or self.times.dtype != x.dtype:
            raise ArgumentError("shape of times", expected=list(x.shape), found=list(self.times.shape))  # fmt: skip


NO_PROLOGUE: Final = Prologue()


@triton.jit
def moments(x_row, eps, channels, NORM: tl.constexpr, BLOCK: tl.constexpr):
    """The moments that a norm needs: a token's mean, and the reciprocal of its root mean square deviation from it."""
    mean = 0.0
    rstd = 1.0
    if NORM == "layer":
        mean = _mean(x_row, channels, BLOCK)
    if NORM != "none":
        rstd = 1.0 / tl.sqrt_rn(_power(x_row, mean, channels, BLOCK) + eps)
    return mean, rstd


@triton.jit
def _power(x_row, mean, channels, BLOCK: tl.constexpr):
    """A token's mean square deviation from ``mean``."""
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, channels, BLOCK):
        i = start + tl.arange(0, BLOCK)
        mask = i < channels
        x = tl.load(x_row + i, mask=mask, other=0.0).to(tl.float32) - mean
        squares += tl.where(mask, x * x, 0.0)
    return tl.sum(squares, 0) / channels


@triton.jit
def _mean(x_row, channels, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, channels, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.load(x_row + i, mask=i < channels, other=0.0).to(tl.float32)
    return tl.sum(total, 0) / channels


@triton.jit
def value_at(x_row, times_row, weight, bias, i, mask, mean, rstd, NORM: tl.constexpr, ACTIVATION: tl.constexpr):  # fmt: skip
    """The 16-bit values in channels ``i`` of a token, with the prologue applied."""
    x = tl.load(x_row + i, mask=mask, other=0.0)
    dtype: tl.constexpr = x.dtype
    if NORM == "rms":
        wide = x.to(tl.float32) * rstd
        if weight is not None:
            if weight.dtype.element_ty != tl.float32:
                wide = narrow(wide, dtype).to(tl.float32)
            wide = wide * tl.load(weight + i, mask=mask, other=0.0).to(tl.float32)
        x = narrow(wide, dtype)
    if NORM == "layer":
        wide = (x.to(tl.float32) - mean) * rstd
        if weight is not None:
            wide = wide * tl.load(weight + i, mask=mask, other=0.0).to(tl.float32)
        if bias is not None:
            wide = wide + tl.load(bias + i, mask=mask, other=0.0).to(tl.float32)
        x = narrow(wide, dtype)
    if ACTIVATION != "none":
        x = narrow(activate(x.to(tl.float32), ACTIVATION), dtype)
    if times_row is not None:
        times = tl.load(times_row + i, mask=mask, other=0.0).to(tl.float32)
        x = narrow(x.to(tl.float32) * times, dtype)
    return x
