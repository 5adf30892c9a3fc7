"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1): keys and values of all heads from one latent per token.

    q = W_q x,  or  W_qb norm(W_qa x);   [c; r] = W_kva x;   c <- norm(c);   r <- rotate(r)
    per head:  [k; v] = W_kvb c;   score = q_plain k + rotate(q_rotated) r;   y = softmax(score) v

The cache has c and r alone. The first tokens of a prompt unfold k and v. Later ones fold W_kvb into both sides instead (section 2.1.2
there): with its rows W_k and W_v of a head, ``score = (W_k^T q_plain) c + ...`` and ``y = W_v (softmax(score) c)``, so that all heads
read the same c and nothing is unfolded (``Latent.folds``). Folded, an int8 W_kvb
is widened some heads at a time, as in W8A16 (``weights.projections.by_head``). Between its linears it runs in PyTorch, on a GPU too: a step
there reads the whole of its static cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backends.interface import Positions
from ..backends.parts import Hidden, Projection, tensor_of
from ..models.architecture import Module
from ..models.config import DecoderConfig
from ..weights.projections import by_head
from ..weights.weights import Weights
from .attention_spec import AttentionSpec
from .cache import Cache, Stored
from .latent_cache import LatentParts
from .norms import NormWeights, normalised

_EPS: Final = 1e-6
"""Of the norms of latents, whatever the config says of other norms."""


class LatentAttention:
    """Such attention in place of the usual one."""

    def __init__(
        self, config: DecoderConfig, modules: Mapping[str, Module], weights: Weights,
        projection: Callable[..., Projection], number: int | None, *, observed: bool,
    ) -> None:  # fmt: skip  # ``projection``: called with roles of linears that share an input
        """``number``: the layer of the cache, if it differs from the decoder's. ``observed``: every linear must be called."""
        assert config.latent is not None
        self.config = config.latent
        self.observed = observed
        layer = modules["kv_b"].layer
        assert layer is not None
        self.spec = AttentionSpec.of(config, layer, None, None, number)
        self.backend = weights.backend
        self.first = projection("q", "q_a", "kv_a")
        self.query = projection("q_b") if self.config.query_rank else None
        self.unfold, self.out = projection("kv_b"), projection("o")
        self.norms = {
            role: NormWeights(True, _EPS, weights.tensor(modules[role]), None)
            for role in ("q_a_norm", "kv_a_norm") if role in modules
        }  # fmt: skip

    def __call__(
        self, x: Hidden, positions: Positions, cache: Cache | None, residual: Tensor | None
    ) -> Tensor:
        """``[b, t, hidden]`` -> the same, with ``residual`` added."""
        c, heads, value = self.config, self.spec.heads, tensor_of(x)
        q, both = self.first(value)
        if self.query is not None:
            (q,) = self.query(normalised(q, self.norms["q_a_norm"]))
        q = q.view(*q.shape[:2], heads, c.query).transpose(1, 2)
        latents, turned = both[:, None].split_with_sizes([c.rank, c.rotated], dim=-1)
        latents = normalised(latents, self.norms["kv_a_norm"])
        plain, q_turned = q.split_with_sizes([c.plain, c.rotated], dim=-1)
        q_turned = self.backend.rotated(q_turned, self.spec, positions)
        turned = self.backend.rotated(turned, self.spec, positions)
        if cache is not None:
            assert isinstance(cache, LatentParts)
            stored = cache.update(self.spec.layer, latents, turned)
            latents, turned = (_widened(part, value.dtype) for part in stored)
        folded = c.folds(value.shape[1], latents.shape[2]) and not self.observed
        attention = self._folded if folded else self._unfolded
        y = attention(plain, q_turned, latents, turned, positions)
        return self.out(y.transpose(1, 2).flatten(2), residual=residual)[0]

    def _unfolded(
        self, q: Tensor, q_turned: Tensor, latents: Tensor, turned: Tensor, positions: Positions
    ) -> Tensor:  # fmt: skip
        """``[b, h, t, value]``, for queries ``[b, h, t, .]`` and all positions ``[b, 1, s, .]``."""
        c, heads = self.config, self.spec.heads
        (both,) = self.unfold(latents[:, 0])
        both = both.view(*both.shape[:2], heads, c.unfolded).transpose(1, 2)
        k, v = both.split_with_sizes([c.plain, c.value], dim=-1)
        k = torch.cat([k, turned.expand(-1, heads, -1, -1)], dim=-1)
        y = self._attend(torch.cat([q, q_turned], dim=-1), k, v, positions)
        return y[..., : c.value]

    def _folded(
        self, q: Tensor, q_turned: Tensor, latents: Tensor, turned: Tensor, positions: Positions
    ) -> Tensor:  # fmt: skip
        c = self.config
        q = by_head(self.unfold, q, slice(0, c.plain), turned=True)
        if q.shape[2] == 1:
            y = self._step(q[:, :, 0], q_turned[:, :, 0], latents[:, 0], turned[:, 0], positions)
        else:
            k = torch.cat([latents, turned], dim=-1)
            y = self._attend(torch.cat([q, q_turned], dim=-1), k, k, positions)[..., : c.rank]
        return by_head(self.unfold, y, slice(c.plain, None), turned=False)

    def _step(
        self, q: Tensor, q_turned: Tensor, latents: Tensor, turned: Tensor, positions: Positions
    ) -> Tensor:  # fmt: skip
        """One token per sequence, ``[b, h, .]``: all heads read the same positions ``[b, s, .]``, so that they are one matrix."""
        scores = q @ latents.transpose(1, 2) + q_turned @ turned.transpose(1, 2)
        last = positions.ids.view(-1, 1, 1)
        beyond = torch.arange(latents.shape[1], device=last.device) > last
        scores = (scores * self.spec.scale).masked_fill(beyond, -math.inf)
        return (torch.softmax(scores.float(), dim=-1).to(q.dtype) @ latents)[:, :, None]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, positions: Positions) -> Tensor:
        """All of one width, as only then PyTorch's operator does without the scores of all heads: narrower values are filled up."""
        width = max(k.shape[-1], v.shape[-1])
        q, k, v = (
            x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1])) for x in (q, k, v)
        )
        spec = replace(self.spec, kv_heads=k.shape[1], size=width)
        return self.backend.attend_to(q, k, v, spec, positions)


def _widened(stored: Stored, dtype: torch.dtype) -> Tensor:
    if isinstance(stored, Tensor):
        return stored.to(dtype)
    return torch.cat([stored.widened(i, 0, 1, dtype) for i in range(stored.shape[0])])
