"""The mixed linear: its weight, its two modes, and the choice of an implementation.

    y = (x outside O) @ (codes * scale)^T + x[:, O] @ outlier_weight^T + bias

with ``O`` the outlier columns (LLM.int8(), arXiv:2208.07339, section 3.2; here chosen offline, so that the outlier columns
of the weight keep their 16 bits). The modes differ in what happens to the other activations:

- ``w8a8``: each token's are quantized to int8 by its largest magnitude; products accumulate in int32. Activations at or
  above ``threshold`` are left out of that and multiplied in 16 bits with the dequantized weight (the outlier fallback).
- ``w8a16``: they stay as they are, and the weight is dequantized on the way.
"""

from __future__ import annotations

from typing import Final, Literal, Protocol, cast

from torch import Tensor

from ..errors import ArgumentError
from . import reference
from .cpu import integer, jit
from .weight import MixedWeight

Mode = Literal["w8a8", "w8a16"]
MODES: Final[tuple[Mode, ...]] = ("w8a8", "w8a16")
IMPLEMENTATIONS: Final = ("reference", "cpu")


class _Implementation(Protocol):
    def w8a8(self, x: Tensor, weight: MixedWeight) -> Tensor: ...

    def w8a16(self, x: Tensor, weight: MixedWeight) -> Tensor: ...


def mixed_linear(
    x: Tensor,
    weight: MixedWeight,
    bias: Tensor | None = None,
    *,
    mode: Mode | None = None,
    implementation: str | None = None,
) -> Tensor:
    """``x @ weight^T + bias`` with an int8 weight and 16-bit outlier columns.

    Args:
        x: float ``[..., in]``.
        weight: int8 ``[out, in]`` with its scales and outlier columns.
        bias: ``[out]`` or None.
        mode: how activations are treated; None takes ``w8a16`` for few tokens and ``w8a8`` for many.
        implementation: one of ``IMPLEMENTATIONS``, to force it; None takes the best: compiled code (``jit``) for a few tokens in
            ``w8a16``, else ``cpu``.

    Returns:
        ``[..., out]`` in the dtype of ``x``; accumulated in int32 or float32, rounded once.

    Raises:
        ArgumentError: a shape, mode or implementation that does not fit.
    """
    if x.shape[-1] != weight.in_features:
        raise ArgumentError("last axis of x", expected=weight.in_features, found=x.shape[-1])
    if mode is not None and mode not in MODES:
        raise ArgumentError("mode", expected=" or ".join(MODES), found=repr(mode))
    rows = x.reshape(-1, weight.in_features)
    if mode is None:
        mode = "w8a16" if rows.shape[0] <= _FEW_TOKENS else "w8a8"
    if implementation is None and mode == "w8a16" and jit.takes(rows, weight.codes):
        y = jit.mixed(rows.float(), weight)
    else:
        y = _by_columns(rows, weight, mode, implementation or "cpu")
    if bias is not None:
        y += bias.float()
    return y.to(x.dtype).reshape(*x.shape[:-1], weight.out_features)


def _by_columns(rows: Tensor, weight: MixedWeight, mode: Mode, implementation: str) -> Tensor:
    """int8 columns by an implementation, and outlier columns by PyTorch."""
    chosen = _implementation(implementation)
    y = (chosen.w8a8 if mode == "w8a8" else chosen.w8a16)(rows.float(), weight)
    if weight.outlier_index is None or weight.outlier_weight is None:
        return y
    outliers = rows.index_select(1, weight.outlier_index).float()
    return y.addmm_(outliers, weight.outlier_weight.float().t())


def dequantized_rows(weight: MixedWeight, rows: Tensor) -> Tensor:
    """Rows of the weight for row numbers ``[...]``: float32 ``[..., in]``; what an embedding looks up."""
    values = weight.codes[rows].float() * weight.scale[rows].unsqueeze(-1)
    if weight.outlier_index is not None and weight.outlier_weight is not None:
        values[..., weight.outlier_index.long()] = weight.outlier_weight[rows].float()
    return values


_FEW_TOKENS = 16
"""Up to here reading the weight takes longer than multiplying in either mode, and w8a16 is the more exact one."""


def _implementation(name: str) -> _Implementation:
    if name not in IMPLEMENTATIONS:
        raise ArgumentError("implementation", expected=" or ".join(IMPLEMENTATIONS), found=name)
    return cast("_Implementation", reference if name == "reference" else integer)
