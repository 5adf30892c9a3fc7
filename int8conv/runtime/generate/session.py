"""A cache that stays from one prompt to the next, so that what they have in common is computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..decoder.decoder import Decoder


class Session:
    """One sequence: its tokens, and their keys and values. Grows as it has to."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._cache: Any = None
        self._steps: Any = None
        self._ids: list[int] = []

    def cache_for(self, prompt: Sequence[int], limit: int) -> Any:
        """A cache with the beginning of a prompt in it, and room for the rest and ``limit`` new tokens.

        At least the prompt's last token is not in it: somebody has to compute the logits.
        """
        needed, config = len(prompt) + limit, self._decoder.config
        if self._cache is None:
            self._cache = self._decoder.cache(batch=1, capacity=needed)
        kept = min(_common(self._ids, prompt), len(prompt) - 1)
        self._ids = self._ids[:kept]
        self._cache.truncate(kept)
        if self._cache.capacity < needed:
            twice = min(2 * self._cache.capacity, config.max_positions)
            self._cache.enlarge(max(needed, twice))
        return self._cache

    @property
    def steps(self) -> Callable[[Tensor], Tensor]:
        """Steps of one token with that cache: on a GPU they are captured once, and again where the cache grows."""
        if self._steps is None:
            self._steps = self._decoder.kernels.steps(self._decoder, self._cache)
        steps: Callable[[Tensor], Tensor] = self._steps
        return steps

    def keep(self, token_ids: Sequence[int]) -> None:
        """Say which tokens the cache was filled with: a prompt and what followed, of which the last may not be in it."""
        self._ids = list(token_ids[: self._cache.length])

    @property
    def token_ids(self) -> list[int]:
        """Tokens whose keys and values are kept."""
        return list(self._ids)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
