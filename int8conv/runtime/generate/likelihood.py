"""Log-probabilities of given continuations, for multiple-choice benchmarks and perplexity."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ...progress import Progress, silent
from ..decoder.cache import Cache
from ..decoder.decoder import Decoder
from ..decoder.working_sizes import PREFILL_TOKENS
from .prefill import prefill
from .session import Session

Tokens = Sequence[int]

_LOGITS_AT_ONCE: Final = 1 << 25
"""Largest number of logits held at once: 128 MiB."""


@dataclass(frozen=True)
class Likelihood:
    """How probable a continuation is after its prefix."""

    logprobs: list[float]
    """Natural logarithms, one per token of the continuation."""
    is_greedy: bool
    """Whether every token is the most probable one: greedy decoding would have written the continuation."""

    @property
    def total(self) -> float:
        """Logarithm of the whole continuation's probability."""
        return sum(self.logprobs)


def score_continuations(
    decoder: Decoder,
    requests: Sequence[tuple[Tokens, Tokens]],
    batch_size: int,
    progress: Progress = silent,
) -> list[Likelihood]:
    """One likelihood per request ``(prefix, continuation)``, in order; a prefix has at least one token.

    What consecutive prefixes begin with in common is computed once, and a prefix once for all of its continuations, up to
    ``batch_size`` of which pass together.
    """
    by_prefix: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, (prefix, _) in enumerate(requests):
        by_prefix[tuple(prefix)].append(number)
    found: dict[int, Likelihood] = {}
    session = Session(decoder)
    for prefix in sorted(by_prefix):
        rows = _Rows.of({number: tuple(requests[number][1]) for number in by_prefix[prefix]})
        for batch in rows.batches(batch_size):
            found |= batch.likelihoods(decoder, session, prefix)
            progress("score", len(found), len(requests))
    return [found[number] for number in range(len(requests))]


@dataclass(frozen=True)
class _Rows:
    """Continuations of one prefix. Those that differ only in their last token form one row, as it is predicted but not read."""

    inputs: list[tuple[int, ...]]
    targets: list[dict[int, tuple[int, ...]]]
    """Per row: number of the request -> its continuation."""

    @classmethod
    def of(cls, continuations: dict[int, tuple[int, ...]]) -> _Rows:
        rows: defaultdict[tuple[int, ...], dict[int, tuple[int, ...]]] = defaultdict(dict)
        for number, tokens in continuations.items():
            rows[tokens[:-1]][number] = tokens
        inputs = sorted(rows, key=len)  # rows of about one length pass together
        return cls(inputs, [rows[tokens] for tokens in inputs])

    def batches(self, size: int) -> Iterator[_Rows]:
        for i in range(0, len(self.inputs), size):
            yield _Rows(self.inputs[i : i + size], self.targets[i : i + size])

    def likelihoods(
        self, decoder: Decoder, session: Session, prefix: tuple[int, ...]
    ) -> dict[int, Likelihood]:
        width, count = len(self.inputs[-1]) + 1, len(self.inputs)
        cache = session.cache_for(prefix, width - 1 if count == 1 else 0)
        rest = torch.tensor([prefix[cache.length : -1]], device=decoder.backend.device)
        if rest.numel():
            prefill(decoder, rest, cache)
        session.keep(prefix)
        if count > 1:
            single, cache = cache, decoder.cache(batch=count, capacity=len(prefix) - 1 + width)
            cache.fill_from(single)
        ids = torch.zeros(count, width, dtype=torch.int64)  # what follows a row does not change it
        for i, tokens in enumerate(self.inputs):
            ids[i, : len(tokens) + 1] = torch.tensor([prefix[-1], *tokens])
        logprobs, greedy = self._read(decoder, cache, ids)
        if count == 1:
            cache.truncate(len(prefix) - 1)
        return {
            number: Likelihood(logprobs[number], all(greedy[number]))
            for row in self.targets
            for number in row
        }

    def _read(
        self, decoder: Decoder, cache: Cache, ids: Tensor
    ) -> tuple[dict[int, list[float]], dict[int, list[bool]]]:
        """Per request: the log-probability of each token, and whether it is the most probable."""
        logprobs: defaultdict[int, list[float]] = defaultdict(list)
        greedy: defaultdict[int, list[bool]] = defaultdict(list)
        count, width = ids.shape
        fits = _LOGITS_AT_ONCE // (count * decoder.config.vocab_size)
        size = max(1, min(fits, PREFILL_TOKENS[decoder.backend.device.type]))
        for begin in range(0, width, size):
            part = ids[:, begin : begin + size].to(decoder.backend.device)
            logs = decoder.forward(part, cache).log_softmax(-1)
            best = logs.argmax(-1)
            for i, row in enumerate(self.targets):
                for number, tokens in row.items():
                    wanted = torch.tensor(tokens[begin : begin + size], device=logs.device)
                    steps = torch.arange(len(wanted), device=logs.device)
                    if len(wanted):
                        logprobs[number] += logs[i, steps, wanted].tolist()
                        greedy[number] += (best[i, : len(wanted)] == wanted).tolist()
        return logprobs, greedy
