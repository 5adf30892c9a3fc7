"""The next token of every sequence of a batch from logits, on the CPU; ``backends.gpu.sampler`` is the GPU's counterpart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor

from .sampling import Sampling, next_token

LogitsProcessor = Callable[[Sequence[int], Tensor], Tensor]
"""The tokens so far, the prompt's too, and float32 logits ``[vocab]`` on the decoder's device -> the logits to choose from."""


@dataclass(frozen=True)
class Request:
    """How to sample one sequence."""

    prompt: Sequence[int]
    sampling: Sampling
    logprobs: bool
    top_logprobs: int = 0
    """So many of the most likely tokens are shown for each."""
    min_new_tokens: int = 0
    """None of ``end_tokens`` before so many."""
    end_tokens: frozenset[int] = frozenset()
    processor: LogitsProcessor | None = None

    @property
    def is_edited(self) -> bool:
        """Whether logits are changed in ways that ``edits`` has, and samplers have not."""
        return bool(
            self.processor is not None or (self.min_new_tokens and self.end_tokens)
            or self.sampling.logit_bias or self.sampling.presence_penalty or self.sampling.frequency_penalty
        )  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """A token and, if requested, the natural logarithm of its probability in the model's own distribution."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    """The most likely tokens with theirs, if asked for."""


class Sampled(Protocol):
    """The tokens of a step."""

    @property
    def tokens(self) -> Tensor:
        """int64 ``[b]`` on the decoder's device, the input of the next step; arbitrary for finished sequences."""

    def choice(self, i: int) -> Choice:
        """A sequence's token for the host, which may have to wait for it.

        Raises:
            GenerationError: the logits are NaN or infinite.
        """


class Sampler(Protocol):
    """Samples the same sequences step by step."""

    ahead: bool
    """Whether the host may start the next step before it looks at a token."""

    def sample(self, logits: Tensor, active: Sequence[int]) -> Sampled:
        """Sample from float32 logits ``[b, vocab]``; only ``active`` sequences matter."""


@dataclass(frozen=True)
class _Sampled:
    tokens: Tensor
    found: Sequence[Choice]

    def choice(self, i: int) -> Choice:
        return self.found[i]


_NONE: Final = Choice(0)


class TorchSampler:
    """Samples one sequence after another."""

    ahead = False

    def __init__(self, requests: Sequence[Request], vocab: int) -> None:
        self._requests = requests
        self._generators = [each.sampling.generator() for each in requests]
        self._seen = [_seen(each, vocab) for each in requests]

    def sample(self, logits: Tensor, active: Sequence[int]) -> _Sampled:
        found = [_NONE] * len(self._requests)
        for i in active:
            found[i] = self._choice(i, logits[i])
        return _Sampled(torch.tensor([each.token for each in found]), found)

    def _choice(self, i: int, logits: Tensor) -> Choice:
        request, seen = self._requests[i], self._seen[i]
        token = next_token(logits, request.sampling, self._generators[i], seen)
        if seen is not None:
            seen[token] = True
        return Choice(token, float(logits.log_softmax(-1)[token]) if request.logprobs else None)


def _seen(request: Request, vocab: int) -> Tensor | None:
    """Bool ``[vocab]``: which tokens have occurred; None if not needed."""
    if request.sampling.repetition_penalty == 1:
        return None
    seen = torch.zeros(vocab, dtype=torch.bool)
    seen[list(request.prompt)] = True
    return seen
