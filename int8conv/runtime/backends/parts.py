"""The parts of a layer that backends work with: activations, linears, and descriptions of a block and its FFN."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..decoder.attention_spec import AttentionSpec
from ..decoder.norms import NormWeights
from ..models.config import Activation, DecoderConfig


class DeferredTensor(ABC):
    """An activation with an operation left to its reader; only linears of the same backend look inside."""

    @abstractmethod
    def value(self) -> Tensor:
        """``[b, t, channels]`` with the operation applied."""


Hidden = Tensor | DeferredTensor
"""Activations ``[b, t, channels]`` between two linears."""


def tensor_of(x: Hidden) -> Tensor:
    """Activations as a tensor."""
    return x if isinstance(x, Tensor) else x.value()


class Projection(Protocol):
    """Linears of one input."""

    def __call__(self, x: Hidden, *, residual: Tensor | None = None) -> Sequence[Tensor]:
        """``[b, t, in]`` -> ``[b, t, out]`` for each linear; a single linear can add ``residual``."""


@dataclass(frozen=True)
class FeedForwardParts:
    """``down(act(wide(x)))`` or, with ``[gate; up]``, ``down(act(gate(x)) * up(x))``."""

    wide: Projection
    """Up, or gate and up if ``gated``, as two linears or one."""
    down: Projection
    activation: Activation
    gated: bool
    clamped: tuple[float, float] | None = None
    """alpha and limit of a clamped FFN (``decoder.ffn.clamped``), whose first linear has rows of gate and up in turn."""


@dataclass(frozen=True)
class BlockParts:
    """One layer of a decoder; absent norms are None."""

    config: DecoderConfig
    attention: AttentionSpec
    qkv: Projection
    out: Projection
    ffn: FeedForwardParts | None
    """None for a mixture of experts."""
    attn_norm: NormWeights | None
    attn_post_norm: NormWeights | None
    mlp_norm: NormWeights | None
    mlp_post_norm: NormWeights | None
