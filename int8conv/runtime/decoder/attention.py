"""Attention in its usual form: linears around what a backend computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backends.interface import Backend, Positions
from ..backends.parts import Hidden, Projection
from ..models.config import DecoderConfig
from .attention_spec import AttentionSpec
from .cache import Cache


class Attention:
    """Causal attention with grouped key/value heads."""

    def __init__(
        self, config: DecoderConfig, spec: AttentionSpec, qkv: Projection, out: Projection, backend: Backend
    ) -> None:  # fmt: skip
        self.config = config
        self.spec = spec
        self.qkv = qkv
        self.out = out
        self.backend = backend

    def __call__(
        self, x: Hidden, positions: Positions, cache: Cache | None, residual: Tensor | None
    ) -> Tensor:
        y = self.backend.attend(self._split(self.qkv(x)), self.spec, positions, cache)
        return self.out(y, residual=residual)[0]

    def _split(self, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """q, k and v ``[b, t, heads * d]``; q alone if keys and values are an earlier layer's."""
        c = self.config
        if c.fused_qkv is None:  # without v, values are the keys
            return [*outputs, outputs[1]] if len(outputs) == 2 else outputs
        queries, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        if c.fused_qkv == "rows":
            return outputs[0].split_with_sizes([queries, keys, keys], dim=-1)
        group = c.num_heads // c.num_kv_heads
        y = outputs[0]
        each = y.view(*y.shape[:-1], c.num_kv_heads, group + 2, c.head_dim)
        parts = each.split_with_sizes([group, 1, 1], dim=-2)
        return [part.flatten(-3) for part in parts]


class GatedAttention(Attention):
    """``out(attention(x) * sigmoid(gate(x)))`` (arXiv:2505.06708); the query projection has each head's query and gate."""

    def __call__(
        self, x: Hidden, positions: Positions, cache: Cache | None, residual: Tensor | None
    ) -> Tensor:
        asked, k, v = self.qkv(x)
        q, gate = asked.view(*asked.shape[:-1], self.spec.heads, -1).chunk(2, dim=-1)
        y = self.backend.attend([q.flatten(-2), k, v], self.spec, positions, cache)
        return self.out(y * torch.sigmoid(gate.flatten(-2)), residual=residual)[0]
