"""A decoding step through a mixture of experts without the host knowing which ones are used; imports triton."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ....errors import ArgumentError
from ....kernels.gpu.experts import ExpertWeights, chosen_experts
from ...decoder.ffn.clamped import clamped_swiglu
from ..parts import FeedForwardParts, Projection
from ..torch_backend import ACTIVATIONS
from .projections import QuantizedProjection


@dataclass(frozen=True)
class _Linears:
    """One linear of each expert."""

    weights: ExpertWeights
    bias: Tensor | None
    """``[experts, out]``."""

    @classmethod
    def of(cls, projections: Sequence[Projection]) -> _Linears | None:
        """None if the kernel does not support one of them."""
        known = [p for p in projections if isinstance(p, QuantizedProjection) and p.mode != "w8a8"]
        biases = [p.bias for p in known if p.bias is not None]
        if len(known) < len(projections) or 0 < len(biases) < len(known):
            return None
        try:
            weights = ExpertWeights.of([p.weight for p in known])
        except ArgumentError:  # unaligned tensors of a foreign file
            return None
        return cls(weights, torch.stack(biases) if biases else None)

    def __call__(self, x: Tensor, slots: Tensor) -> Tensor:
        y = chosen_experts(x, self.weights, slots)
        return y if self.bias is None else y + self.bias[slots].to(y.dtype)


class FewTokens:
    """Passes few tokens through the experts chosen for them, in W8A16."""

    def __init__(self, wide: _Linears, down: _Linears, form: FeedForwardParts) -> None:
        """``form``: one of the experts, which are all of one form."""
        self._wide = wide
        self._down = down
        self._form = form

    @classmethod
    def of(cls, experts: Sequence[FeedForwardParts]) -> FewTokens | None:
        """For FFNs of two int8 matrices each; None for any others, or in W8A8."""
        forms = {(each.activation, each.gated, each.clamped) for each in experts}
        wide = _Linears.of([each.wide for each in experts])
        down = _Linears.of([each.down for each in experts])
        if wide is None or down is None or len(forms) > 1:
            return None
        return cls(wide, down, experts[0])

    def __call__(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """``[tokens, hidden]``, numbers and weights of experts ``[tokens, used]`` -> the weighted sum ``[tokens, hidden]``."""
        slots = chosen.flatten()
        y = self._down(self._inner(x, slots), slots).view(*chosen.shape, -1)
        return (y.float() * weights[..., None]).sum(1).to(x.dtype)

    def _inner(self, x: Tensor, slots: Tensor) -> Tensor:
        """``[slots, inner]``; in the kernel of the product where that can apply the activation function."""
        form = self._form
        if form.gated and form.clamped is None and self._wide.bias is None:
            return chosen_experts(x, self._wide.weights, slots, activation=form.activation)
        y = self._wide(x, slots)
        if form.clamped is not None:
            return clamped_swiglu(y, *form.clamped)
        gate, *up = y.chunk(2, dim=-1) if form.gated else (y,)
        inner = ACTIVATIONS[form.activation](gate)
        return inner * up[0] if up else inner
