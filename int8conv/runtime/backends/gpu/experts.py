"""A decoding step through a mixture of experts without the host knowing which ones are used; imports triton."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ....errors import ArgumentError
from ....kernels.gpu.experts import ExpertWeights, chosen_experts
from ....kernels.weight import MixedWeight
from ...models.config import Activation
from ..parts import FeedForwardParts, Projection
from .projections import QuantizedProjection


class FewTokens:
    """Passes few tokens through the experts chosen for them, in W8A16."""

    def __init__(self, wide: ExpertWeights, down: ExpertWeights, activation: Activation) -> None:
        self._wide = wide
        self._down = down
        self._activation = activation

    @classmethod
    def of(cls, experts: Sequence[FeedForwardParts]) -> FewTokens | None:
        """For gated FFNs of two int8 matrices each, without bias; None for any others, or in W8A8."""
        wide = _weights([each.wide for each in experts if each.gated])
        down = _weights([each.down for each in experts])
        if len(wide) < len(experts) or len(down) < len(experts):
            return None
        try:
            tables = [ExpertWeights.of(group) for group in (wide, down)]
        except ArgumentError:  # unaligned tensors of a foreign file
            return None
        return cls(tables[0], tables[1], experts[0].activation)

    def __call__(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """``[tokens, hidden]``, numbers and weights of experts ``[tokens, used]`` -> the weighted sum ``[tokens, hidden]``."""
        slots = chosen.flatten()
        inner = chosen_experts(x, self._wide, slots, activation=self._activation)
        y = chosen_experts(inner, self._down, slots).view(*chosen.shape, -1)
        return (y.float() * weights[..., None]).sum(1).to(x.dtype)


def _weights(projections: Sequence[Projection]) -> list[MixedWeight]:
    """The weights of those projections that the kernel supports."""
    return [
        each.weight
        for each in projections
        if isinstance(each, QuantizedProjection) and each.bias is None and each.mode != "w8a8"
    ]
