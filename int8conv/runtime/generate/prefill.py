"""Run a prompt through the decoder, in parts that bound the memory of activations."""

from __future__ import annotations

from torch import Tensor

from ..decoder.cache import Cache
from ..decoder.decoder import Decoder
from ..decoder.working_sizes import PREFILL_TOKENS


def prefill(decoder: Decoder, token_ids: Tensor, cache: Cache) -> Tensor:
    """Append token ids ``[1, t]`` (at least one, on the decoder's device) to the cache; returns the last one's logits ``[1, 1, vocab]``."""
    size = PREFILL_TOKENS[decoder.backend.device.type]
    parts = [token_ids[:, i : i + size] for i in range(0, token_ids.shape[1], size)]
    return [decoder.forward(part, cache, last_only=True) for part in parts][-1]
