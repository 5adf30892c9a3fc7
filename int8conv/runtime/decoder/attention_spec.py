"""The parameters of attention in one layer: scale, masks and biases of scores, norms of heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.config import DecoderConfig
from .norms import NormWeights, unweighted

Tables = tuple[Tensor, Tensor]
"""cos and sin of a rotary embedding."""


@dataclass(frozen=True)
class AttentionSpec:
    """Attention of one layer."""

    layer: int
    """Layer of the cache."""
    heads: int
    kv_heads: int
    size: int
    """Channels of a head."""
    scale: float
    """Scale of scores."""
    softcap: float | None = None
    window: int | None = None
    """Number of positions that a token attends to, including itself."""
    alibi: float = 0.0
    """Multiplier of ALiBi slopes; 0: no ALiBi."""
    rotary: int | None = 0
    """Number of the rotary embedding in the decoder; None: this layer rotates nothing."""
    interleaved: bool = False
    """Whether it pairs adjacent channels."""
    query_norm: NormWeights | None = None
    key_norm: NormWeights | None = None
    by_head: bool = True
    """Whether q and k are normalised per head or over all heads."""
    norm_rotated: bool = False
    """Whether they are normalised after the rotation."""
    growth: float = 0.0
    """Queries are multiplied by ``1 + growth * log(1 + floor(position / growth_positions))``."""
    growth_positions: float = 1.0
    sinks: Tensor | None = None
    """float32 ``[heads]``: scores of a position without a value (``torch_attention``)."""
    value_norm: NormWeights | None = None
    reads_only: bool = False
    """Whether it attends to keys and values that an earlier layer has put into the cache."""

    @classmethod
    def of(
        cls, config: DecoderConfig, layer: int, query_norm: NormWeights | None, key_norm: NormWeights | None,
        cache_layer: int | None = None, sinks: Tensor | None = None, device: torch.device | None = None,
    ) -> AttentionSpec:  # fmt: skip
        """The spec of a decoder layer; ``cache_layer`` is given if the cache has fewer layers than the decoder."""
        window, heads = config.window(layer), config.heads_of(layer)
        local = config.local_rope is not None and window is not None
        scale = config.attention_scale
        scale = heads.size**-0.5 if scale is None else scale
        return cls(
            config.cache_layer(layer) if cache_layer is None else cache_layer,
            config.num_heads,
            heads.count,
            heads.size,
            scale,
            config.attention_softcap,
            window,
            (scale if config.alibi_scaled else 1.0) if config.alibi else 0.0,
            int(local) if config.is_rotated(layer) else None,
            config.rope is not None and config.rope.interleaved,
            query_norm,
            key_norm,
            config.query_norm != "row",
            config.norm_rotated,
            config.query_growth,
            config.rope.original_positions if config.rope is not None else 1.0,
            sinks,
            unweighted(heads.size, config.norm_eps, device) if config.value_norm else None,
            not config.has_own_keys(layer),
        )

    @property
    def explicit(self) -> bool:
        """Whether scores are computed one by one, as PyTorch's operator lacks a feature."""
        return self.softcap is not None or self.sinks is not None

    def grown(self, q: Tensor, positions: Tensor) -> Tensor:
        """Queries ``[b, t, h, d]`` of tokens at ``positions``, ``[t]`` or ``[b, t]``, multiplied as ``growth`` says."""
        if not self.growth:
            return q
        times = torch.floor(positions.float() / self.growth_positions)
        return q * (1 + self.growth * torch.log1p(times))[..., None, None].to(q.dtype)

    def own(self, tables: Sequence[Tables]) -> Tables | None:
        """This layer's tables of cos and sin, among those of all rotary embeddings; None: nothing is rotated."""
        return tables[self.rotary] if tables and self.rotary is not None else None


def alibi_slopes(heads: int) -> Tensor:
    """ALiBi slopes (arXiv:2108.12409, section 3), float32 ``[heads]``; between powers of two, every other slope of the next power."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (i + 1) / power) for i in range(0, 2 * (heads - power), 2)]
    return torch.tensor(slopes, dtype=torch.float32)
