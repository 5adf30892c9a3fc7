"""Speculative decoding by prompt lookup: what followed the last words where they stood before is guessed to follow again.

A pass checks all guessed tokens at once, which on a device whose steps wait for the weights takes little longer than a step
(arXiv:2211.17192, section 2, with the text itself in place of a second model). Tokens are chosen by the same sampler as without
guesses, one after the other, each from the logits behind those chosen before: a guess decides how fast a token comes, not which.

Sums of a pass over several tokens are rounded in another order. Where the two most likely tokens lie closer than that may matter, a plain
step decides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

from ...kernels.dispatch import Mode
from ..backends.interface import Step
from ..decoder.cache import Cache
from ..decoder.decoder import Decoder
from .edits import sampler_of
from .generation import Continuation
from .prefill import prefill
from .sampler import Sampler

LONGEST: Final = 15
"""Guessed tokens: with the one before them, as many as ``w8a16`` is the default for."""
_SHORTEST: Final = 3
_WORDS: Final = (4, 3, 2)
"""Lengths of what is looked for, the longest first."""
_PATIENCE: Final = (16, 512)
"""Tokens without guesses, once these did not pay: at first, and at most."""
_TRIES: Final = 3
"""Passes before guesses are given up: a first one may compile, and any may have waited for other programs."""
_CLOSE: Final = 0.01
_CLOSE_IN_8_BITS: Final = 0.25
"""Differences of logits that a plain step decides: activations in float32, and in 8 or 16 bits."""


class Guesses:
    """The text so far, and where its words stood."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._ids: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}
        """Words -> the position behind their last occurrence but the newest."""
        for token in token_ids:
            self.push(token)

    def push(self, token: int) -> None:
        """Add a token."""
        for count in _WORDS:
            if len(self._ids) >= count:
                self._places[tuple(self._ids[-count:])] = len(self._ids)
        self._ids.append(token)

    def next(self, most: int) -> list[int]:
        """Up to ``most`` tokens that may follow."""
        for count in _WORDS:
            place = self._places.get(tuple(self._ids[-count:]))
            if place is not None and len(self._ids) >= count:
                period = len(self._ids) - place  # after which it would be repeating itself
                return [self._ids[place + i % period] for i in range(most)]
        return []


class Pace:
    """Whether guessing pays, by the clock, and how many tokens to guess.

    A token's time is averaged with and without guesses. Where guesses are slower, they pause; each time for twice as long.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.most = _SHORTEST
        self._plain: float | None = None
        self._guessed: float | None = None
        self._pause = 0
        self._patience = _PATIENCE[0]
        self._tries = 0

    @property
    def guesses(self) -> bool:
        """Whether to guess now: not before the time of a plain step is known."""
        return self._plain is not None and self._pause == 0

    def stepped(self, seconds: float) -> None:
        """A plain step took so long."""
        self._plain = _averaged(self._plain, seconds)
        self._pause = max(0, self._pause - 1)

    def checked(self, guessed: int, found: int, seconds: float) -> None:
        """A pass over ``guessed`` tokens gave ``found`` tokens."""
        all_right = found == guessed + 1
        self.most = min(LONGEST, 2 * guessed + 1) if all_right else max(_SHORTEST, found)
        self._guessed = _averaged(self._guessed, seconds / max(found, 1))
        self._tries += 1
        if self._plain is None or self._guessed <= self._plain:
            self._patience = _PATIENCE[0]
        elif self._tries >= _TRIES:
            self._pause, self._guessed, self._tries = self._patience, None, 0
            self._patience = min(2 * self._patience, _PATIENCE[1])


def _averaged(before: float | None, now: float) -> float:
    """A first step may compile, and other programs only add time: what is faster counts at once."""
    return now if before is None else min(now, 0.7 * before + 0.3 * now)


def can_guess(decoder: Decoder) -> bool:
    """Whether wrong guesses can be taken back and several tokens give what each gives alone: not with recurrent states, nor with
    rotary frequencies that depend on the length."""
    grows = any(rotary.grows for rotary in decoder.embedding.rotaries)
    return decoder.config.recurrence is None and not grows


def with_guesses(
    decoder: Decoder, continuation: Continuation, cache: Cache, step: Step, mode: Mode | None, pace: Pace | None = None
) -> Iterator[None]:  # fmt: skip
    """As ``token_by_token`` for one sequence, with a pause after each pass, which may have given several tokens."""
    if continuation.done:
        return
    sampler = sampler_of(decoder, [continuation.request])
    exact = decoder.dtype == torch.float32 and mode != "w8a8" and decoder.kv_cache != torch.int8
    run = _Run(decoder, continuation, cache, step, sampler, _CLOSE if exact else _CLOSE_IN_8_BITS)
    pace = pace or Pace()
    rest = torch.tensor([continuation.prompt[cache.length :]], device=decoder.backend.device)
    run.choose(prefill(decoder, rest, cache)[:, -1])
    yield
    plain = False
    while not continuation.done:
        began = pace.clock()
        most = min(pace.most, continuation.left - 1)
        guess = run.guesses.next(most) if pace.guesses and most > 0 and not plain else []
        found = run.check(guess) if guess else run.step()
        seconds = pace.clock() - began
        if guess:
            pace.checked(len(guess), found, seconds)
        else:
            pace.stepped(seconds)
        plain = found == 0
        if found:
            yield


class _Run:
    """One sequence on its way."""

    def __init__(
        self, decoder: Decoder, continuation: Continuation, cache: Cache, step: Step, sampler: Sampler, close: float
    ) -> None:  # fmt: skip
        self._decoder, self._continuation, self._cache = decoder, continuation, cache
        self._step, self._sampler, self._close = step, sampler, close
        self.guesses = Guesses(continuation.prompt)

    def choose(self, logits: Tensor) -> int:
        """Sample the next token from ``[1, vocab]``, and take it."""
        choice = self._sampler.sample(logits, [0]).choice(0)
        self._continuation.take(choice)
        self.guesses.push(choice.token)
        return choice.token

    def step(self) -> int:
        """One token -> 1."""
        self.choose(self._step(self._tokens([]))[:, -1])
        return 1

    def check(self, guess: Sequence[int]) -> int:
        """A pass over guessed tokens -> the number of tokens found, which may be 0."""
        before, found = self._cache.length, 0
        logits = self._decoder.forward(self._tokens(guess), self._cache)[0]
        unclear = self._unclear(logits)
        try:
            for row in logits[:, None]:
                if found < len(unclear) and unclear[found]:
                    break
                token = self.choose(row)
                found += 1
                if self._continuation.done or found > len(guess) or token != guess[found - 1]:
                    break
        finally:
            self._cache.truncate(before + found)
        return found

    def _unclear(self, logits: Tensor) -> list[bool]:
        """Of each row of ``[tokens, vocab]``, whether rounding might decide; nothing of those that are drawn."""
        if self._continuation.request.sampling.temperature > 0:
            return []
        best = logits.topk(2).values
        return [bool(close) for close in (best[:, 0] - best[:, 1] < self._close).tolist()]

    def _tokens(self, guess: Sequence[int]) -> Tensor:
        ids = [[self._continuation.token_ids[-1], *guess]]
        return torch.tensor(ids, device=self._decoder.backend.device)
