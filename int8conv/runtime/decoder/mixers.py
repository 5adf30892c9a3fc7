"""What mixes the tokens of a layer: attention, a recurrence, or both side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from torch import Tensor

from ..backends.interface import Positions
from ..backends.parts import Hidden, Projection
from ..models.architecture import Module
from ..models.config import DecoderConfig
from ..models.recurrence import Delta, Mamba, Recurrence, ShortConv
from ..weights.weights import Weights
from .cache import Cache
from .recurrent.delta_net import DeltaNet
from .recurrent.mamba import Mamba2
from .recurrent.short_conv import ShortConvolution


class Mixer(Protocol):
    """``[b, t, hidden]`` -> the same, with ``residual`` added; tokens see those before them, in the cache too."""

    def __call__(
        self, x: Hidden, positions: Positions, cache: Cache | None, residual: Tensor | None
    ) -> Tensor: ...


_KINDS: Final[Mapping[type[Recurrence], Callable[..., Mixer]]] = {
    Delta: DeltaNet,
    Mamba: Mamba2,
    ShortConv: ShortConvolution,
}


def recurrent_mixer(
    config: DecoderConfig, modules: Mapping[str, Module], weights: Weights, projection: Callable[..., Projection], number: int
) -> Mixer:  # fmt: skip
    """A layer's recurrence; ``number``: its number among the cache's states."""
    return _KINDS[type(config.recurrence)](config, modules, weights, projection, number)  # type: ignore[index]


class SideBySide:
    """The scaled outputs of a recurrence and of attention that read the same input (Falcon-H1, arXiv:2507.22448, section 2.1)."""

    def __init__(self, config: DecoderConfig, recurrence: Mixer, attention: Mixer) -> None:
        self.recurrence, self.attention = recurrence, attention
        self.scales = config.recurrence_scale, config.attention_out_scale

    def __call__(
        self, x: Hidden, positions: Positions, cache: Cache | None, residual: Tensor | None
    ) -> Tensor:
        y = self.recurrence(x, positions, cache, None) * self.scales[0]
        y = y + self.attention(x, positions, cache, None) * self.scales[1]
        return y if residual is None else residual + y
