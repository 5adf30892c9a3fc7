"""An activation on a GPU: a tensor, or one to which a norm or activation function is still to be applied; imports triton."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ....kernels.gpu.linear import Pending


@dataclass(frozen=True)
class Deferred:
    """``[tokens, in]`` with what is still to be done to it, of the shape ``[b, t, in]``."""

    pending: Pending
    shape: tuple[int, ...]


def pending(x: Tensor | Deferred) -> tuple[Pending, tuple[int, ...]]:
    """An activation as rows, and its first axes."""
    if isinstance(x, Deferred):
        return x.pending, x.shape[:-1]
    return Pending(x.reshape(-1, x.shape[-1])), tuple(x.shape[:-1])


def value(x: Tensor | Deferred) -> Tensor:
    """An activation as a tensor."""
    return x.pending.value().view(x.shape) if isinstance(x, Deferred) else x
