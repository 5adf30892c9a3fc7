"""LAuReL (arXiv:2411.07501, section 2.2): a learned low-rank product of attention's input h beside the residual connection.

y <- (y + h + norm(right(left(h)))) / sqrt(2)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from ...backends.parts import Hidden, Projection, tensor_of
from ...models.config import DecoderConfig
from ...models.modules import Module
from ...weights.weights import Weights
from ..norm import Norm


class Laurel:
    """Such a product of one layer."""

    def __init__(
        self, config: DecoderConfig, modules: Mapping[str, Module], weights: Weights, projection: Callable[..., Projection]
    ) -> None:  # fmt: skip  # ``projection``: called with roles of linears that share an input
        self.left, self.right = projection("laurel_left"), projection("laurel_right")
        self.norm = Norm(config, modules["laurel_norm"], weights)

    def __call__(self, h: Hidden, y: Tensor) -> Tensor:
        """For attention's normalised input ``h`` and the residual stream behind it ``y``, both ``[b, t, hidden]``."""
        value = tensor_of(h)
        low_rank = tensor_of(self.norm(self.right(self.left(value)[0])[0]))
        return (y + value + low_rank) * math.sqrt(0.5)
