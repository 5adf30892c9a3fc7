"""The interface between decoder and backends, by role; ``Backend`` combines all roles.

| implementation | module | runs |
| --- | --- | --- |
| PyTorch's operators | ``torch_backend`` | anywhere |
| layers compiled by numba | ``numba_backend`` | single tokens on a CPU; PyTorch for everything else |
| Triton kernels | ``gpu.backend`` | on a GPU, or in Triton's interpreter |

Linears are not included: ``weights`` creates ``Projection``s that match the backend. Shapes: ``b`` batch, ``t`` tokens of a call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..decoder.attention_spec import AttentionSpec
from ..decoder.cache import Cache
from ..decoder.norms import NormWeights
from ..decoder.rotary import Rotary
from ..generate.sampler import Request, Sampler
from ..models.config import Activation, DecoderConfig
from .parts import BlockParts, FeedForwardParts, Hidden, Projection

Step = Callable[[Tensor], Tensor]
"""Token ids ``[b, 1]`` -> logits ``[b, 1, vocab]``, overwritten by the next call."""


class Positions(Protocol):
    """The positions of a call's tokens, with what the backend needs for attention at them."""

    @property
    def ids(self) -> Tensor:
        """Integers ``[t]``, or ``[b, t]`` if sequences differ."""

    def to(self, device: torch.device) -> Positions:
        """The same positions on another device."""

    def last(self) -> Positions:
        """Those of each sequence's last token alone."""


FusedLayer = Callable[[Tensor, Positions, Cache | None], Tensor | None]
"""A layer as one call on ``[b, t, hidden]``; returns None if it does not support the call."""
FusedExperts = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Tokens ``[tokens, hidden]``, numbers of their experts ``[tokens, used]`` and the experts' weights likewise -> ``[tokens, hidden]``."""


class Forward(Protocol):
    """A decoder, as steps use it."""

    @property
    def needs_host_sync(self) -> bool:
        """Whether a step of one token per sequence requires the host to wait for the device."""

    def forward(self, token_ids: Tensor, cache: Cache | None = None, *, last_only: bool = False) -> Tensor:  # fmt: skip
        """Token ids ``[b, t]`` -> logits, float32 ``[b, t or 1, vocab]``."""


class Caching(Protocol):
    """Key/value caches."""

    def cache(self, config: DecoderConfig, *, batch: int, capacity: int, dtype: torch.dtype) -> Cache:  # fmt: skip
        """An empty cache in a float dtype, or in int8 with scales; only for this backend's ``attend``."""


class Elementwise(Protocol):
    """Operations between two linears."""

    def norm(self, x: Tensor, norm: NormWeights) -> Hidden:
        """RMSNorm or LayerNorm of the last axis."""

    def inner(self, wide: Projection, x: Hidden, activation: Activation, gated: bool) -> Hidden:
        """``act(up)`` or ``act(gate) * up`` of the FFN; gate and up may be one linear."""


class Attending(Protocol):
    """Positions and attention."""

    def positions(
        self, rotaries: Sequence[Rotary], cache: Cache | None, token_ids: Tensor, dtype: torch.dtype
    ) -> Positions:
        """The positions of token ids ``[b, t]`` after those in the cache; ``dtype`` is the dtype of activations."""

    def attend(
        self, qkv: Sequence[Tensor], spec: AttentionSpec, positions: Positions, cache: Cache | None
    ) -> Tensor:
        """``[b, t, heads * d]`` for q, k and v ``[b, t, ...]``; stores k and v in the cache. Cache and positions must be this backend's."""

    def rotated(self, x: Tensor, spec: AttentionSpec, positions: Positions) -> Tensor:
        """Queries or keys ``[b, h, t, d]`` at these positions."""

    def attend_to(
        self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, positions: Positions
    ) -> Tensor:
        """``[b, heads, t, d]`` for queries of the same shape, and keys and values ``[b, kv_heads, s, d]`` of all positions so far."""


class Fusing(Protocol):
    """Several linears and the operations between them as one call."""

    def fuse_layer(self, block: BlockParts) -> FusedLayer | None:
        """A decoder layer; None if this backend does not fuse it."""

    def fuse_experts(self, experts: Sequence[FeedForwardParts]) -> FusedExperts | None:
        """Experts, without the host knowing which ones are used; None if this backend does not fuse them."""


class Generating(Protocol):
    """Generating token by token."""

    def steps(self, decoder: Forward, cache: Cache) -> Step:
        """A callable for repeated steps of one token per sequence with a cache."""

    def sampler(self, requests: Sequence[Request], vocab: int) -> Sampler:
        """A sampler of the sequences' tokens from logits of ``vocab`` entries."""


class Backend(Caching, Elementwise, Attending, Fusing, Generating, Protocol):
    """Everything a decoder needs besides its linears, on one device."""

    device: torch.device
