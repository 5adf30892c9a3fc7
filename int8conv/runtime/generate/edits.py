"""Changes to logits before sampling: biases, penalties, a minimum number of tokens, and the caller's own hook.

They work on any device, around its sampler, which then waits for the host at every token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import ArgumentError, GenerationError
from ..decoder.decoder import Decoder
from .sampler import Choice, Request, Sampled, Sampler


def edited(sampler: Sampler, requests: Sequence[Request], device: torch.device) -> Sampler:
    """A sampler that changes logits as requested; the given one if there is nothing to change."""
    if not any(each.is_edited or each.top_logprobs for each in requests):
        return sampler
    return EditingSampler(sampler, requests, device)


def sampler_of(decoder: Decoder, requests: Sequence[Request]) -> Sampler:
    """The device's sampler, which changes logits as requested."""
    backend = decoder.backend
    return edited(backend.sampler(requests, decoder.config.vocab_size), requests, backend.device)


class EditingSampler:
    """Applies, in this order: ``logit_bias``, presence and frequency penalty, ``min_new_tokens``, ``logits_processor``."""

    ahead = False

    def __init__(self, inner: Sampler, requests: Sequence[Request], device: torch.device) -> None:
        self._inner = inner
        self._rows = [_Row(each, device) for each in requests]

    def sample(self, logits: Tensor, active: Sequence[int]) -> Sampled:
        changed = logits.clone()
        for i in active:
            changed[i] = self._rows[i].edit(logits[i])
        sampled = self._inner.sample(changed, active)
        chosen: list[Choice] = [Choice(0)] * len(self._rows)
        for i in active:
            chosen[i] = self._rows[i].take(sampled.choice(i), logits[i])
        return _Chosen(sampled.tokens, chosen)


@dataclass(frozen=True)
class _Chosen:
    tokens: Tensor
    found: Sequence[Choice]

    def choice(self, i: int) -> Choice:
        return self.found[i]


class _Row:
    """One sequence."""

    def __init__(self, request: Request, device: torch.device) -> None:
        self._request = request
        self._tokens: list[int] = []
        self._counts: Tensor | None = None
        self._bias = request.sampling.logit_bias or {}
        self._biased = torch.tensor(list(self._bias), dtype=torch.int64, device=device)
        self._amounts = torch.tensor(list(self._bias.values()), dtype=torch.float32, device=device)
        self._ends = torch.tensor(sorted(request.end_tokens), dtype=torch.int64, device=device)

    def edit(self, logits: Tensor) -> Tensor:
        """Change the logits of the next token, float32 ``[vocab]``."""
        changed, sampling = logits.clone(), self._request.sampling
        if self._bias:
            changed[self._biased] += self._amounts
        if self._counts is not None:
            changed -= sampling.frequency_penalty * self._counts
            changed -= sampling.presence_penalty * (self._counts > 0)
        if len(self._tokens) < self._request.min_new_tokens:
            changed[self._ends[self._ends < len(logits)]] = -torch.inf
        if self._request.processor is not None:
            changed = self._processed(changed)
        if not math.isfinite(float(changed.max())) and math.isfinite(float(logits.max())):
            raise GenerationError("no token is left to choose: logit_bias, min_new_tokens or logits_processor exclude all of them")  # fmt: skip
        return changed

    def take(self, choice: Choice, logits: Tensor) -> Choice:
        """Record a token and its log-probability in the model's own distribution."""
        sampling, token = self._request.sampling, choice.token
        self._tokens.append(token)
        if sampling.presence_penalty or sampling.frequency_penalty:
            if self._counts is None:
                self._counts = torch.zeros_like(logits)
            self._counts[token] += 1
        count = min(self._request.top_logprobs, len(logits))
        if not self._request.logprobs and not count:
            return choice
        own = logits.log_softmax(-1)
        return Choice(token, float(own[token]), likeliest(own, count))

    def _processed(self, logits: Tensor) -> Tensor:
        assert self._request.processor is not None
        found = self._request.processor([*self._request.prompt, *self._tokens], logits)
        if not isinstance(found, Tensor) or found.shape != logits.shape:
            raise ArgumentError("logits_processor", expected=f"a function that returns a tensor {list(logits.shape)}",
                                found=list(found.shape) if isinstance(found, Tensor) else type(found).__name__)  # fmt: skip
        return found.to(logits)


def likeliest(logprobs: Tensor, count: int) -> tuple[tuple[int, float], ...]:
    """The ``count`` most likely tokens of ``[vocab]`` with their log-probabilities, most likely first."""
    values, tokens = logprobs.topk(count)
    return tuple(zip(tokens.tolist(), values.tolist(), strict=True))
