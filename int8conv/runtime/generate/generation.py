"""Continuing prompts: the loop from logits to tokens to text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..backends.interface import Step
from ..decoder.cache import Cache
from ..decoder.decoder import Decoder
from ..text.detokenizer import Detokenizer
from ..text.stopping import StopScanner
from .prefill import prefill
from .sampler import Choice, Request, Sampled
from .sampling import Sampling


@dataclass(frozen=True)
class Generation:
    """The generated text, without the prompt."""

    text: str
    """Without the end token, the stop string, and a final character cut off by the limit."""
    token_ids: list[int]
    """All sampled tokens, including the end token and those of a stop string."""
    finish_reason: Literal["stop", "length"]
    """``"stop"`` at an end token or stop string, otherwise ``"length"``."""
    logprobs: list[float] | None = None
    """If requested: for each of ``token_ids``, the natural logarithm of its probability in the model's own distribution, before
    penalty, temperature and selection."""


class Continuation:
    """One prompt and its continuation so far."""

    def __init__(
        self, prompt: Sequence[int], limit: int, sampling: Sampling, *, end_tokens: frozenset[int],
        detokenizer: Detokenizer, stops: Sequence[str] = (), logprobs: bool = False,
        on_text: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        self.prompt = list(prompt)
        self.limit = limit
        self.token_ids: list[int] = []
        self.done = limit == 0
        self.request = Request(self.prompt, sampling, logprobs)
        self._end_tokens = end_tokens
        self._detokenizer = detokenizer
        self._scanner = StopScanner(stops)
        self._logprobs: list[float] | None = [] if logprobs else None
        self._pieces: list[str] = []
        self._on_text = on_text
        self._finish_reason: Literal["stop", "length"] = "length"

    @property
    def left(self) -> int:
        """Number of tokens left until the limit."""
        return self.limit - len(self.token_ids)

    def take(self, choice: Choice) -> None:
        """Append the next token."""
        token = choice.token
        self.token_ids.append(token)
        if self._logprobs is not None and choice.logprob is not None:
            self._logprobs.append(choice.logprob)
        ended = token in self._end_tokens
        if not ended:
            self._show(self._scanner.push(self._detokenizer.push(token)))
        if ended or self._scanner.stopped:
            self._finish_reason = "stop"
        self.done = self._finish_reason == "stop" or self.left == 0
        if self.done:
            self._show(self._scanner.push(self._detokenizer.finish()) + self._scanner.finish())

    def result(self) -> Generation:
        return Generation(
            "".join(self._pieces), self.token_ids, self._finish_reason, self._logprobs
        )

    def _show(self, text: str) -> None:
        if text:
            self._pieces.append(text)
            if self._on_text is not None:
                self._on_text(text)


def continue_all(
    decoder: Decoder, continuations: Sequence[Continuation], cache: Cache, step: Step | None = None
) -> None:  # fmt: skip
    """Run until all are finished. The cache has one sequence for each; prompt tokens that are already in it are not recomputed.

    ``step`` advances all by one token with that cache; None creates one.

    If tokens are sampled on the device, the next step starts before the host has seen them; a sequence that ends at one of them
    has then taken one step too many, at a position that belongs to it anyway.
    """
    active = [i for i, each in enumerate(continuations) if not each.done]
    if not active:
        return
    requests = [each.request for each in continuations]
    sampler = decoder.backend.sampler(requests, decoder.config.vocab_size)
    sampled: Sampled = sampler.sample(_prompts(decoder, continuations, active, cache), active)
    step = step or decoder.backend.steps(decoder, cache)
    while active:
        following = None
        if sampler.ahead and any(continuations[i].left > 1 for i in active):
            following = sampler.sample(step(sampled.tokens[:, None])[:, -1], active)
        for i in active:
            continuations[i].take(sampled.choice(i))
        done = [i for i in active if continuations[i].done]
        active = [i for i in active if not continuations[i].done]
        for i in done if active else ():
            cache.clear(i)
        if active:
            sampled = following or sampler.sample(step(sampled.tokens[:, None])[:, -1], active)


def _prompts(
    decoder: Decoder, continuations: Sequence[Continuation], active: Sequence[int], cache: Cache
) -> Tensor:
    """Logits after each prompt, float32 ``[b, vocab]``; zeros for inactive ones."""
    shape = (len(continuations), decoder.config.vocab_size)
    logits = torch.zeros(shape, device=decoder.backend.device)
    for i in active:
        part = cache.sequence(i) if len(continuations) > 1 else cache
        rest = torch.tensor([continuations[i].prompt])[:, part.length :]
        logits[i] = prefill(decoder, rest.to(decoder.backend.device), part)[0, -1]
    return logits
