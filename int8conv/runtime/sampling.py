"""Choose the next token from logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ArgumentError


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Applied in this order: temperature, top-k, top-p (arXiv:1904.09751, section 3.1)."""

    temperature: float = 0.0
    """0 takes the most likely token."""
    top_k: int | None = None
    """Keep the k most likely tokens."""
    top_p: float | None = None
    """Keep the fewest tokens whose probabilities sum to at least this."""
    seed: int | None = None
    """None draws differently each time."""

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ArgumentError("temperature", expected="0 or more", found=self.temperature)
        if self.top_k is not None and self.top_k < 1:
            raise ArgumentError("top_k", expected="1 or more", found=self.top_k)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ArgumentError("top_p", expected="above 0, at most 1", found=self.top_p)
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise ArgumentError("seed", expected="a 64-bit integer", found=self.seed)

    def generator(self) -> torch.Generator:
        """A generator seeded as asked."""
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution that is drawn from: float32 ``[vocab]`` -> float32 ``[vocab]``; needs a temperature above 0."""
    logits = (logits - logits.max()) / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.numel():
        smallest = logits.topk(sampling.top_k).values[-1]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if sampling.top_p is not None:
        ordered, order = logits.softmax(-1).sort(descending=True)
        before = ordered.cumsum(-1) - ordered
        logits = logits.index_fill(0, order[before >= sampling.top_p], -torch.inf)
    return logits.softmax(-1)


def next_token(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Draw from float32 logits ``[vocab]``."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    drawn = torch.multinomial(probabilities(logits, sampling), 1, generator=generator)
    return int(drawn)
