"""An activation on a GPU with a norm or activation function yet to be applied; imports triton."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ....kernels.gpu.linear import Operand
from ..parts import DeferredTensor, Hidden


@dataclass(frozen=True)
class Deferred(DeferredTensor):
    """``[tokens, channels]`` with a pending prologue, representing ``[b, t, channels]``."""

    operand: Operand
    shape: tuple[int, ...]

    def value(self) -> Tensor:
        return self.operand.value().view(self.shape)


def operand_of(x: Hidden) -> tuple[Operand, tuple[int, ...]]:
    """An activation as rows, and its leading axes."""
    if isinstance(x, Tensor):
        rows = x.reshape(-1, x.shape[-1])
        rows = rows if rows.stride(1) == 1 else rows.contiguous()  # as kernels read them
        return Operand(rows), tuple(x.shape[:-1])
    assert isinstance(x, Deferred)
    return x.operand, x.shape[:-1]
