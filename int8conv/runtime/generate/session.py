"""A cache kept from one prompt to the next, so that their common beginning is computed only once."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ...errors import GenerationError
from ..backends.interface import Step
from ..decoder.cache import Cache
from ..decoder.decoder import Decoder
from ..models.config import DecoderConfig


class Session:
    """One sequence: its tokens with their keys and values. Grows on demand."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._cache: Cache | None = None
        self._steps: Step | None = None
        self._ids: list[int] = []
        self._lock = threading.Lock()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """While a generation runs: it is for one at a time.

        Raises:
            GenerationError: another one has not ended, or its stream was not closed.
        """
        if not self._lock.acquire(blocking=False):
            raise GenerationError(
                "the session is in use: another generation with it has not ended",
                hint="a session for each thread, or close() the stream that is open",
            )  # fmt: skip
        try:
            yield
        finally:
            self._lock.release()

    def cache_for(self, prompt: Sequence[int], limit: int) -> Cache:
        """A cache that holds the beginning of a prompt, with room for the rest and ``limit`` new tokens.

        It never holds the prompt's last token, whose logits have to be computed.
        """
        needed = len(prompt) + limit
        cache = self._cache = self._cache or self._decoder.cache(batch=1, capacity=needed)
        kept = min(common_length(self._ids, prompt), len(prompt) - 1)
        self._ids = self._ids[:kept]
        cache.truncate(kept)
        if cache.capacity < needed:
            cache.enlarge(grown_capacity(cache, needed, self._decoder.config))
        return cache

    @property
    def steps(self) -> Step:
        """Steps of one token with that cache; on a GPU they are captured once, and again when the cache grows."""
        if self._steps is None:
            assert self._cache is not None  # ``cache_for`` is called first
            self._steps = self._decoder.backend.steps(self._decoder, self._cache)
        return self._steps

    def keep(self, token_ids: Sequence[int]) -> None:
        """Record the tokens that the cache was filled with, a prompt and its continuation; the last one may not be in it."""
        self._ids = list(token_ids[: 0 if self._cache is None else self._cache.length])

    def forget(self) -> None:
        """Compute the next prompt from its start; memory and captured steps stay."""
        self._ids = []

    @property
    def token_ids(self) -> list[int]:
        """Tokens whose keys and values are kept."""
        return list(self._ids)


def grown_capacity(cache: Cache, needed: int, config: DecoderConfig) -> int:
    """Positions of a cache that is too small for ``needed``: twice as many as it has, as growing copies it."""
    return max(needed, min(2 * cache.capacity, config.max_positions))


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common prefix of two sequences."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
