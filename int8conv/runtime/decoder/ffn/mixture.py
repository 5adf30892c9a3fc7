"""A mixture of experts in place of the FFN (arXiv:2101.03961): each token passes through the few experts its router chooses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ...backends.interface import Backend
from ...backends.parts import FeedForwardParts, Hidden, Projection, tensor_of
from ...models.config import Experts
from .routing import choose


class Expert(Protocol):
    """An FFN, ``[tokens, hidden]`` -> ``[tokens, hidden]``."""

    @property
    def parts(self) -> FeedForwardParts | None:
        """Its description for a backend; None if no backend fuses it."""

    def __call__(self, x: Hidden) -> Tensor: ...


class MixtureOfExperts:
    """Experts, and possibly a shared one that every token passes through.

    Args:
        config: how many are used, and how they are weighted.
        router: ``[b, t, hidden]`` -> a score per expert.
        experts: the FFNs.
        shared: the shared FFN.
        shared_gate: one score for the shared FFN, which is passed through a sigmoid; None: no gate.
        backend: may process few tokens as one fused call.
        router_bias: float32 ``[experts]``, added to the scores to choose experts.
        expert_scale: float32 ``[experts]``, multiplies the weights of those that are chosen.
    """

    def __init__(
        self, config: Experts, router: Projection, experts: Sequence[Expert], shared: Expert | None,
        shared_gate: Projection | None, backend: Backend, router_bias: Tensor | None = None,
        expert_scale: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.config = config
        self.router = router
        self.experts = experts
        self.shared = shared
        self.shared_gate = shared_gate
        self.router_bias = router_bias
        self.expert_scale = expert_scale
        parts = [expert.parts for expert in experts]
        known = [part for part in parts if part is not None]
        self._fused = backend.fuse_experts(known) if len(known) == len(parts) else None

    @property
    def needs_host_sync(self) -> bool:
        """Whether a step has to read from the device which experts it needs."""
        return self._fused is None

    def __call__(
        self, x: Hidden, residual: Tensor | None = None, routed: Tensor | None = None
    ) -> Tensor:
        """``[b, t, hidden]`` -> the same, with ``residual`` added. ``routed``: what the router reads; None: ``x``."""
        x = tensor_of(x)
        rows = x.reshape(-1, x.shape[-1])
        seen = rows if routed is None else routed.reshape(rows.shape)
        weights, chosen = choose(self.router(seen)[0].float(), self.config, self.router_bias)
        if self.expert_scale is not None:
            weights = weights * self.expert_scale[chosen]
        step = x.ndim == 3 and x.shape[1] == 1
        if step and self._fused is not None:
            y = self._fused(rows, chosen, weights)
        else:
            y = self._one_by_one(rows, chosen, weights)
        if self.shared is not None:
            shared = self.shared(rows)
            y += (
                shared
                if self.shared_gate is None
                else torch.sigmoid(self.shared_gate(rows)[0]) * shared
            )
        y = y.view(x.shape)
        return y if residual is None else residual + y

    def _one_by_one(self, rows: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Run one expert after another; experts that no token uses are not read. Without values, all tokens pass through all."""
        y = torch.zeros_like(rows)
        if rows.is_meta:  # compiled ahead of time
            for each in self.experts:
                each(rows)
            return y
        for expert in sorted(set(chosen.flatten().tolist())):
            tokens, place = (chosen == expert).nonzero(as_tuple=True)
            weight = weights[tokens, place, None].to(rows.dtype)
            y.index_add_(0, tokens, self.experts[expert](rows[tokens]) * weight)
        return y
