"""Continuing prompts: the loop from logits to tokens to text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..backends.interface import Step
from ..decoder.cache import Cache
from ..decoder.decoder import Decoder
from ..text.detokenizer import Detokenizer
from ..text.stopping import StopScanner
from .edits import sampler_of
from .prefill import prefill
from .sampler import Choice, LogitsProcessor, Request, Sampled
from .sampling import Sampling

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Generation:
    """The generated text, without the prompt."""

    text: str
    """Without the end token, the stop string, and a final character cut off by the limit."""
    token_ids: list[int]
    """All sampled tokens, including the end token and those of a stop string."""
    finish_reason: FinishReason
    """``"stop"`` at an end token or stop string, ``"cancelled"`` if the caller ended it, otherwise ``"length"``."""
    logprobs: list[float] | None = None
    """If requested: for each of ``token_ids``, the natural logarithm of its probability in the model's own distribution, before
    penalty, temperature and selection."""
    top_logprobs: list[tuple[tuple[int, float], ...]] | None = None
    """If requested: for each of ``token_ids``, the most likely tokens with their log-probabilities."""
    prompt_tokens: int = 0


class Continuation:
    """One prompt and its continuation so far."""

    def __init__(
        self, prompt: Sequence[int], limit: int, sampling: Sampling, *, end_tokens: frozenset[int],
        detokenizer: Detokenizer | None, stops: Sequence[str] = (), logprobs: bool = False,
        top_logprobs: int = 0, min_new_tokens: int = 0, processor: LogitsProcessor | None = None,
        on_text: Callable[[str], None] | None = None, lookup: bool = False,
    ) -> None:  # fmt: skip
        """``detokenizer``: None: there is no text, only tokens; ``lookup``: guess tokens (``lookup.py``)."""
        self.prompt = list(prompt)
        self.limit = limit
        self.token_ids: list[int] = []
        self.lookup = lookup
        self.done = limit == 0
        self.request = Request(
            self.prompt, sampling, logprobs, top_logprobs, min_new_tokens, end_tokens, processor
        )
        self._end_tokens = end_tokens
        self._detokenizer = detokenizer
        self._scanner = StopScanner(stops)
        self._logprobs: list[float] | None = [] if logprobs else None
        self._top: list[tuple[tuple[int, float], ...]] | None = [] if top_logprobs else None
        self._pieces: list[str] = []
        self._on_text = on_text
        self._finish_reason: FinishReason = "length"

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
        if self._top is not None:
            self._top.append(choice.top)
        ended = token in self._end_tokens
        if not ended and self._detokenizer is not None:
            self._show(self._scanner.push(self._detokenizer.push(token)))
        if ended or self._scanner.stopped:
            self._finish_reason = "stop"
        if self._finish_reason == "stop" or self.left == 0:
            self._end()

    def cancel(self) -> None:
        """End the continuation here."""
        if not self.done:
            self._finish_reason = "cancelled"
            self._end()

    def result(self) -> Generation:
        return Generation(
            "".join(self._pieces), self.token_ids, self._finish_reason, self._logprobs, self._top,
            len(self.prompt),
        )  # fmt: skip

    def _end(self) -> None:
        self.done = True
        rest = "" if self._detokenizer is None else self._detokenizer.finish()
        self._show(self._scanner.push(rest) + self._scanner.finish())
        if self._scanner.stopped and self._finish_reason == "length":
            self._finish_reason = "stop"  # in what was held back until now

    def _show(self, text: str) -> None:
        if text:
            self._pieces.append(text)
            if self._on_text is not None:
                self._on_text(text)


def continue_all(
    decoder: Decoder, continuations: Sequence[Continuation], cache: Cache, step: Step | None = None
) -> None:  # fmt: skip
    """Run ``token_by_token`` until all are finished."""
    for _ in token_by_token(decoder, continuations, cache, step):
        pass


def token_by_token(
    decoder: Decoder, continuations: Sequence[Continuation], cache: Cache, step: Step | None = None
) -> Iterator[None]:  # fmt: skip
    """Run, with a pause after each token of all, until all are done or cancelled. The cache has a sequence for each; what it has
    of a prompt already is not computed again.

    ``step`` advances all by one token with that cache; None creates one.

    If tokens are sampled on the device, the next step starts before the host has seen them; a sequence that ends at one of them
    has then taken one step too many, at a position that belongs to it anyway.
    """
    active = [i for i, each in enumerate(continuations) if not each.done]
    if not active:
        return
    requests = [each.request for each in continuations]
    sampler = sampler_of(decoder, requests)
    sampled: Sampled = sampler.sample(_prompts(decoder, continuations, active, cache), active)
    step = step or decoder.backend.steps(decoder, cache)
    while active:
        following = None
        if sampler.ahead and any(continuations[i].left > 1 for i in active):
            following = sampler.sample(step(sampled.tokens[:, None])[:, -1], active)
        for i in active:
            continuations[i].take(sampled.choice(i))
        yield
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
    logits = torch.zeros(shape, dtype=torch.float32, device=decoder.backend.device)
    for i in active:
        part = cache.sequence(i) if len(continuations) > 1 else cache
        rest = torch.tensor([continuations[i].prompt])[:, part.length :]
        logits[i] = prefill(decoder, rest.to(decoder.backend.device), part)[0, -1]
    return logits
