"""Continuous batching: sequences in one static cache that go on together, join between two steps, and leave when they are done.

The cache has a place for each sequence. Those that are computed are its first ones, so that a step passes over no others; who joins
or leaves changes places. Keys and values stay in a place that is free, and a prompt that begins like
what any place contains begins with a copy of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from ...errors import Int8convError
from ..backends.interface import Step
from ..decoder.cache import Cache
from ..decoder.decoder import Decoder
from ..decoder.working_sizes import PREFILL_TOKENS
from ..devices import current
from .edits import sampler_of
from .generation import Continuation
from .sampler import Sampler
from .session import common_length, grown_capacity

Room = Callable[[int, int], AbstractContextManager[None]]
"""Positions and sequences -> a guard around the allocation of such a cache."""

_SHORT: Final = 16
"""Prompts with such a part of the tokens that pass at once are read together before others go on."""


class Member:
    """A continuation in a batch, or one that waits for a place."""

    def __init__(self, continuation: Continuation, sampler: Sampler) -> None:
        self.continuation = continuation
        self.sampler = sampler
        self.error: Exception | None = None
        """Why it ended early."""

    @property
    def ended(self) -> bool:
        return self.error is not None or self.continuation.done


@dataclass
class _Place:
    """A sequence of the cache."""

    member: Member | None = None
    ids: list[int] = field(default_factory=list)
    """Tokens whose keys and values it keeps, while it is free."""
    left: int = 0
    """When it was left, counted in members."""


class Batch:
    """Continuations that share the passes over the weights; made by ``Model.batch``. For one thread.

    Each gets what it gets alone, up to the rounding of sums, as in ``Model.generate_batch``.
    """

    def __init__(self, decoder: Decoder, size: int, room: Room) -> None:
        self._decoder = decoder
        self._room = room
        self._cache: Cache | None = None
        self._steps: dict[int, tuple[Cache, Step]] = {}
        """By number of sequences."""
        self._places = [_Place() for _ in range(size)]
        self._active = 0
        """Members that are computed: those of the first places."""
        self._filling: deque[Member] = deque()
        """Members with a place whose prompts have not been read."""
        self._waiting: deque[Member] = deque()
        self._left = 0

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to compute."""
        return not (self._active or self._filling or self._waiting)

    @property
    def has_place(self) -> bool:
        """Whether one more would not have to wait."""
        taken = sum(place.member is not None for place in self._places)
        return taken + len(self._waiting) < len(self._places)

    def add(self, continuation: Continuation) -> Member:
        """Let one join, after those that were added before."""
        with current(self._decoder.backend.device):
            member = Member(continuation, sampler_of(self._decoder, [continuation.request]))
        if not member.ended:
            self._waiting.append(member)
        return member

    def remove(self, member: Member) -> None:
        """End one, wherever it is."""
        member.continuation.cancel()
        if member in self._waiting:
            self._waiting.remove(member)
        for i, place in enumerate(self._places):
            if place.member is member:
                self._leave(i)

    def step(self) -> None:
        """Read a part of a prompt that waits, or several short ones, and continue each of the others by one token.

        What goes wrong with a member is its ``error``, and the others go on.
        """
        with current(self._decoder.backend.device):
            budget = max(1, PREFILL_TOKENS[self._decoder.backend.device.type] // _SHORT)
            while budget > 0 and self._next_to_fill() is not None:
                budget -= self._fill()
            if self._active:
                self._advance()

    def _next_to_fill(self) -> Member | None:
        while not self._filling and self._waiting and self._free():
            self._take_place(self._waiting.popleft())
        return self._filling[0] if self._filling else None

    def _free(self) -> list[int]:
        return [i for i, place in enumerate(self._places) if place.member is None]

    def _take_place(self, member: Member) -> None:
        """Give a member a free place, and what any place has computed of its prompt's beginning."""
        prompt, limit = member.continuation.prompt, member.continuation.limit
        try:
            cache = self._cache_for(len(prompt) + limit)
        except Int8convError as error:
            member.error = error
            return
        held = [self._held(i) for i in range(len(self._places))]
        shared = [min(common_length(ids, prompt), len(prompt) - 1) for ids in held]
        i = self._place_for(held, shared)
        cache.sequence(i).truncate(shared[i])
        other = max(range(len(shared)), key=shared.__getitem__)
        if shared[other] > shared[i] and not cache.states:
            cache.copy(other, i, shared[other])
        self._places[i].member = member
        self._filling.append(member)

    def _held(self, i: int) -> list[int]:
        """The tokens whose keys and values a place contains."""
        place = self._places[i]
        if place.member is None or self._cache is None:
            return place.ids
        told = place.member.continuation
        return [*told.prompt, *told.token_ids][: int(self._cache.lengths[i])]

    def _place_for(self, held: list[list[int]], shared: list[int]) -> int:
        """The free place that contains most of the prompt and loses at most half of its own; otherwise that which was left first."""
        places = self._places
        good = [i for i in self._free() if 0 < len(held[i]) <= 2 * shared[i]]
        if good:
            return max(good, key=lambda i: (shared[i], -places[i].left))
        return min(self._free(), key=lambda i: places[i].left)

    def _cache_for(self, positions: int) -> Cache:
        size = len(self._places)
        if self._cache is None:
            with self._room(positions, size):
                self._cache = self._decoder.cache(batch=size, capacity=positions)
        elif self._cache.capacity < positions:
            grown = grown_capacity(self._cache, positions, self._decoder.config)
            with self._room(grown, size):
                self._cache.enlarge(grown)
            self._steps.clear()
        return self._cache

    def _fill(self) -> int:
        """Read a part of a prompt -> its number of tokens."""
        member = self._filling[0]
        i = next(i for i, place in enumerate(self._places) if place.member is member)
        prompt, device = member.continuation.prompt, self._decoder.backend.device
        assert self._cache is not None
        part = self._cache.sequence(i)
        tokens = prompt[part.length :][: PREFILL_TOKENS[device.type]]
        try:
            ids = torch.tensor([tokens], device=device)
            logits = self._decoder.forward(ids, part, last_only=True)
            if part.length == len(prompt):
                _choose(member, logits[:, -1])
        except Exception as error:
            self._fail(i, error)
            return len(tokens)
        if part.length == len(prompt):
            self._filling.popleft()
            if member.ended:
                self._leave(i)
            else:
                self._exchange(i, self._active)
                self._active += 1
        return len(tokens)

    def _advance(self) -> None:
        """One token for each active member."""
        members = [
            place.member for place in self._places[: self._active] if place.member is not None
        ]
        last = [[each.continuation.token_ids[-1]] for each in members]
        try:
            step = self._step_of(len(members))
            logits = step(torch.tensor(last, device=self._decoder.backend.device))[:, -1]
        except Exception as error:
            for i in reversed(range(self._active)):
                self._fail(i, error)
            return
        for i, member in enumerate(members):
            try:
                _choose(member, logits[i : i + 1])
            except Exception as error:
                member.error = error
        for i in reversed(range(self._active)):
            if members[i].ended:
                self._leave(i)

    def _step_of(self, count: int) -> Step:
        """A step of the first ``count`` sequences."""
        assert self._cache is not None
        if count not in self._steps:
            part = self._cache.first(count)
            self._steps[count] = part, self._decoder.backend.steps(self._decoder, part)
        part, step = self._steps[count]
        part.recount()
        return step

    def _fail(self, i: int, error: Exception) -> None:
        member = self._places[i].member
        assert member is not None and self._cache is not None
        member.error = error
        self._cache.clear(i)  # nobody knows what it holds
        self._leave(i)

    def _leave(self, i: int) -> None:
        """Free a place; what it has computed stays."""
        place = self._places[i]
        member = place.member
        assert member is not None
        self._left += 1
        place.ids = self._held(i)
        place.member, place.left = None, self._left
        if member in self._filling:
            self._filling.remove(member)
        if i < self._active:
            self._active -= 1
            self._exchange(i, self._active)

    def _exchange(self, i: int, j: int) -> None:
        if i != j:
            assert self._cache is not None
            self._cache.exchange(i, j)
            places = self._places
            places[i], places[j] = places[j], places[i]


def _choose(member: Member, logits: Tensor) -> None:
    """The next token from ``[1, vocab]``."""
    member.continuation.take(member.sampler.sample(logits, [0]).choice(0))
