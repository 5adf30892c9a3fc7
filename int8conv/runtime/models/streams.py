"""Sizes of what Gemma 3n and Gemma 4 add to a decoder's residual stream."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerInput:
    """An embedding of the tokens for each layer (``decoder.residual.layer_input``)."""

    size: int
    """Channels per token and layer."""
    vocab_size: int
    """Tokens from this number on have the embedding of token 0."""


@dataclass(frozen=True)
class AltUp:
    """Several residual streams, of which layers compute one (``decoder.residual.altup``)."""

    streams: int
    active: int
    """The stream that layers read and write."""
    scaled: bool
    """Whether a learned vector multiplies it before the layer's own embedding is added to the others."""
    laurel_rank: int
    """Of the low-rank product that is added to attention (``decoder.residual.laurel``)."""
