"""Linears on a CPU, and the choice of an implementation for each call, which is made nowhere else.

    y = (x outside O) @ (codes * scale)^T + x[:, O] @ outlier_weight^T + bias

where ``O`` are the outlier columns (LLM.int8(), arXiv:2208.07339, section 3.2; here chosen offline, so that the weight keeps
its outlier columns in 16 bits). The modes differ in how they treat the other activations:

- ``w8a8``: each token is quantized to int8 by its largest magnitude, or by those of blocks of its channels; products accumulate in
  int32. Activations at or above ``threshold`` are excluded and multiplied in 16 bits by the dequantized weight (the outlier fallback).
- ``w8a16``: activations are not quantized, and the weight is dequantized on the fly.

If none is requested, few tokens are multiplied in ``w8a16``, and more in ``w8a8`` where that is faster: on a processor with int8 dot
products (VNNI). Any other keeps 16 bits.

| implementation | modes | used |
| --- | --- | --- |
| ``cpu.jit`` | w8a16, and 16-bit weights | up to ``compiled_tokens()`` tokens, if numba is installed |
| ``cpu.integer`` | both | otherwise, if the processor has int8 dot products |
| ``cpu.int16`` | if none is requested | otherwise, for more tokens, if numba is installed and the processor has AVX2 |
| ``cpu.widened`` | both, and any weight | otherwise |
| ``reference`` | both | in tests |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ArgumentError
from .cpu import int16, integer, jit, widened
from .crossovers import (
    COMPILED_TOKENS,
    COMPILED_TOKENS_WITHOUT_VNNI,
    TOKENS_AT_ONCE,
    W8A16_TOKENS,
)
from .weight import MixedWeight

Mode = Literal["w8a8", "w8a16"]
MODES: Final[tuple[Mode, ...]] = ("w8a8", "w8a16")

Multiply = Callable[[Tensor, MixedWeight], Tensor]
"""float32 ``[tokens, in]`` -> float32 ``[tokens, out]``, outlier columns included, without bias."""


def check_mode(mode: object) -> None:
    """Raise ArgumentError for an unknown mode; None leaves it to the number of tokens."""
    if mode is not None and mode not in MODES:
        raise ArgumentError("mode", expected=" or ".join(MODES), found=repr(mode))


def mixed_linear(
    x: Tensor, weight: MixedWeight, bias: Tensor | None = None, *, mode: Mode | None = None
) -> Tensor:
    """``x @ weight^T + bias`` for an int8 weight with 16-bit outlier columns.

    Args:
        x: float ``[..., in]``.
        weight: int8 ``[out, in]`` with its scales and outlier columns.
        bias: ``[out]`` or None.
        mode: how activations are treated; None: what is fastest, which is at least as exact as ``mode_for`` the number of tokens.

    Returns:
        ``[..., out]`` in the dtype of ``x``; accumulated in int32 or float32, rounded once.

    Raises:
        ArgumentError: a shape or mode is invalid.
    """
    if x.shape[-1] != weight.in_features:
        raise ArgumentError("last axis of x", expected=weight.in_features, found=x.shape[-1])
    check_mode(mode)
    rows = x.reshape(-1, weight.in_features)
    multiply = implementation(rows, weight, mode)
    count = -(-rows.shape[0] // TOKENS_AT_ONCE)
    if count <= 1:
        y = _multiplied(rows, weight, bias, multiply)
    else:
        y = rows.new_empty(rows.shape[0], weight.out_features)
        for part, out in zip(rows.chunk(count), y.chunk(count), strict=True):  # of one size
            out.copy_(_multiplied(part, weight, bias, multiply))
    return y.reshape(*x.shape[:-1], weight.out_features)


def _multiplied(
    rows: Tensor, weight: MixedWeight, bias: Tensor | None, multiply: Multiply
) -> Tensor:
    y = multiply(rows.float(), weight)
    if bias is not None:
        y += bias.detach().float()
    return y.to(rows.dtype)


def mode_for(tokens: int) -> Mode:
    """The default mode for a number of tokens on this processor."""
    return "w8a16" if tokens <= W8A16_TOKENS or not integer.available() else "w8a8"


def compiled_tokens() -> int:
    """Largest number of tokens for compiled code on this processor."""
    return COMPILED_TOKENS if integer.available() else COMPILED_TOKENS_WITHOUT_VNNI


def implementation(rows: Tensor, weight: MixedWeight, mode: Mode | None) -> Multiply:
    """The implementation that multiplies activations ``[tokens, in]`` by a weight; None: ``mode_for`` their number, or better."""
    tokens, vnni = rows.shape[0], integer.available()
    chosen = mode or mode_for(tokens)
    if chosen == "w8a16" and _compiled(rows, weight.codes):
        return jit.w8a16
    if mode is None and not vnni and tokens > W8A16_TOKENS and int16.available(weight):
        return int16.linear
    if chosen == "w8a16":
        return integer.w8a16 if vnni else widened.w8a16
    return integer.w8a8 if vnni else widened.w8a8


def prepare() -> None:
    """Compile the code for many tokens, or load it from disk, now rather than at the first prompt."""
    weight = MixedWeight(torch.ones(16, 64, dtype=torch.int8), torch.ones(16, dtype=torch.float32))
    mixed_linear(torch.ones(W8A16_TOKENS + 1, 64, dtype=torch.float32), weight)


def dense_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight^T + bias``; a weight of another dtype is widened a block of rows at a time, never all at once.

    Args:
        x: float ``[..., in]``.
        weight: float ``[out, in]``.
        bias: ``[out]`` or None.

    Returns:
        ``[..., out]`` in the dtype of ``x``.
    """
    bias = None if bias is None else bias.to(x.dtype)
    if weight.dtype == x.dtype:
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    if x.dtype == torch.float32 and weight.dtype in jit.KINDS and _compiled(rows, weight):
        y = jit.dense(rows, weight)
    else:
        y = widened.linear(rows, weight)
    y = y if bias is None else y + bias
    return y.reshape(*x.shape[:-1], weight.shape[0])


def _compiled(rows: Tensor, weight: Tensor) -> bool:
    """Whether code compiled by numba multiplies ``[tokens, in]`` by int8 or 16-bit ``[out, in]``."""
    on_host = weight.device.type == "cpu" and weight.is_contiguous()
    return 0 < rows.shape[0] <= compiled_tokens() and on_host and jit.available()
