"""What the decoder asks of a backend, by role. ``Backend`` is all of them together.

| implementation | module | runs |
| --- | --- | --- |
| PyTorch's operators | ``torch_backend`` | anywhere |
| layers compiled by numba | ``numba_backend`` | single tokens on a CPU; the rest is PyTorch's |
| Triton kernels | ``gpu.backend`` | on a GPU, or in Triton's interpreter |

Linears are not here: ``weights`` makes ``Projection``s that belong to the backend. Shapes: ``b`` batch, ``t`` tokens of a call.
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
    """Where the tokens of a call stand, with what its backend needs for attention there."""

    @property
    def ids(self) -> Tensor:
        """Integers ``[t]``, or of each sequence ``[b, t]``."""

    def to(self, device: torch.device) -> Positions:
        """On another device."""


FusedLayer = Callable[[Tensor, Positions, Cache | None], Tensor | None]
"""A layer as one call on ``[b, t, hidden]``; None: not for this call."""
FusedExperts = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Tokens ``[tokens, hidden]``, the numbers of the experts for each ``[tokens, used]``, their weights likewise -> ``[tokens, hidden]``."""


class Forward(Protocol):
    """What steps are made of: a decoder."""

    @property
    def needs_host_sync(self) -> bool:
        """Whether a step of one token per sequence makes the host wait for the device."""

    def forward(self, token_ids: Tensor, cache: Cache | None = None, *, last_only: bool = False) -> Tensor:  # fmt: skip
        """Token ids ``[b, t]`` -> logits, float32 ``[b, t or 1, vocab]``."""


class Caching(Protocol):
    """Memory for keys and values."""

    def cache(self, config: DecoderConfig, *, batch: int, capacity: int, dtype: torch.dtype) -> Cache:  # fmt: skip
        """An empty cache in a float dtype, or in int8 with scales; only this backend's ``attend`` takes it."""


class Elementwise(Protocol):
    """Between two linears."""

    def norm(self, x: Tensor, norm: NormWeights) -> Hidden:
        """RMSNorm or LayerNorm of the last axis."""

    def inner(self, wide: Projection, x: Hidden, activation: Activation, gated: bool) -> Hidden:
        """``act(up)``, or ``act(gate) * up``, of the FFN; gate and up may be one linear."""


class Attending(Protocol):
    """Positions and attention."""

    def positions(
        self, rotaries: Sequence[Rotary], cache: Cache | None, token_ids: Tensor, dtype: torch.dtype
    ) -> Positions:
        """Of token ids ``[b, t]`` after those in the cache; ``dtype`` is that of activations."""

    def attend(
        self, qkv: Sequence[Tensor], spec: AttentionSpec, positions: Positions, cache: Cache | None
    ) -> Tensor:
        """``[b, t, heads * d]`` for q, k and v of ``[b, t, ...]``; k and v go into the cache. Cache and positions are this backend's."""


class Fusing(Protocol):
    """Several linears, and what is between them, as one call."""

    def fuse_layer(self, block: BlockParts) -> FusedLayer | None:
        """A decoder's layer; None: not here, or not one like this."""

    def fuse_experts(self, experts: Sequence[FeedForwardParts]) -> FusedExperts | None:
        """Experts, of which the host never learns which are used; None: not here, or not such experts."""


class Generating(Protocol):
    """Token after token."""

    def steps(self, decoder: Forward, cache: Cache) -> Step:
        """Steps of one token per sequence with a cache, as often as wanted."""

    def sampler(self, requests: Sequence[Request], vocab: int) -> Sampler:
        """What chooses the tokens of sequences from such logits."""


class Backend(Caching, Elementwise, Attending, Fusing, Generating, Protocol):
    """Everything between a decoder's linears, on one device."""

    device: torch.device
