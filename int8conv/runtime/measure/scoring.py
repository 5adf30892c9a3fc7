"""Scores of a text from one or two streams of hidden states: likelihoods, divergence, agreement, error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch.nn.functional as F
from torch import Tensor

from ...progress import Progress
from ..weights.streaming import BlockStream

_POSITIONS_AT_ONCE: Final = 128
"""Number of positions whose logits are held at once."""


def relative_rms(source: BlockStream, converted: BlockStream) -> float:
    """RMS difference of the hidden states divided by the RMS of the source's."""
    pairs = list(zip(source.hidden, converted.hidden, strict=True))
    noise = sum(float((a - b).double().square().sum()) for a, b in pairs)
    signal = sum(float(a.double().square().sum()) for a, _ in pairs)
    return math.sqrt(noise / signal) if signal else math.sqrt(noise)


@dataclass
class Scores:
    """Sums over scored positions."""

    nll: list[float]
    """Negative log-likelihood per model."""
    scored: int = 0
    kl: float = 0.0
    kl_worst: float = -1.0
    worst: tuple[int, int] = (0, 0)
    """Window and position of the worst divergence."""
    same: int = 0

    def means(self) -> tuple[float, float | None]:
        """Mean negative log-likelihood of the last model and, if there are two, of the first."""
        means = [total / self.scored for total in self.nll]
        return means[-1], means[0] if len(means) == 2 else None


def score(
    streams: Sequence[BlockStream],
    windows: Sequence[Tensor],
    firsts: Sequence[int],
    progress: Progress,
) -> Scores:
    """Score each window from its first position to score on; the streams must be past their last block."""
    outputs = [stream.output() for stream in streams]
    scores = Scores([0.0] * len(streams))
    for number, (ids, first) in enumerate(zip(windows, firsts, strict=True)):
        progress("scores", number, len(windows))
        for begin in range(first, len(ids), _POSITIONS_AT_ONCE):
            end = min(begin + _POSITIONS_AT_ONCE, len(ids))
            logs = [
                F.log_softmax(output(stream.hidden[number][..., begin - 1 : end - 1, :])[0], dim=-1)
                for output, stream in zip(outputs, streams, strict=True)
            ]
            targets = ids[begin:end, None].to(logs[0].device)
            for model, log in enumerate(logs):
                scores.nll[model] -= float(log.gather(1, targets).double().sum())
            scores.scored += end - begin
            if len(logs) == 2:
                _compare(scores, logs[0], logs[1], number, begin)
    progress("scores", len(windows), len(windows))
    return scores


def _compare(scores: Scores, source: Tensor, found: Tensor, window: int, begin: int) -> None:
    divergence = (source.exp() * (source - found)).double().sum(dim=-1).clamp_(min=0)
    scores.kl += float(divergence.sum())
    worst = int(divergence.argmax())
    if float(divergence[worst]) > scores.kl_worst:
        scores.kl_worst, scores.worst = float(divergence[worst]), (window, begin + worst)
    scores.same += int((source.argmax(dim=-1) == found.argmax(dim=-1)).sum())
