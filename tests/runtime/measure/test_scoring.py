"""Scores of hidden states against sums written out in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from int8conv.runtime.measure.scoring import Scores, relative_rms, score

VOCAB = 7


class Stream:
    """Hidden states that are logits already: ``[1, tokens, vocab]`` of each window."""

    def __init__(self, hidden: list[Tensor]) -> None:
        self.hidden = hidden

    def output(self) -> Any:
        return lambda x: x


def stream(seed: int, lengths: tuple[int, ...]) -> Any:
    g = torch.Generator().manual_seed(seed)
    return Stream([torch.randn(1, n, VOCAB, generator=g) * 2 for n in lengths])


def windows(lengths: tuple[int, ...]) -> list[Tensor]:
    g = torch.Generator().manual_seed(9)
    return [torch.randint(VOCAB, (n,), generator=g) for n in lengths]


LENGTHS, FIRSTS = (5, 300, 129), (1, 1, 100)
"""Longer than what is held at once, by some and by one; the last is scored from its position 100 on."""


def test_sums_are_those_of_the_definition() -> None:
    first, second, ids = stream(1, LENGTHS), stream(2, LENGTHS), windows(LENGTHS)
    scores = score([first, second], ids, FIRSTS, lambda *_: None)
    nll, kl, same, count = [0.0, 0.0], [], 0, 0
    for number, window in enumerate(ids):
        logs = [s.hidden[number][0].double().log_softmax(-1) for s in (first, second)]
        for position in range(FIRSTS[number], len(window)):
            a, b = (log[position - 1] for log in logs)
            nll[0] -= float(a[window[position]])
            nll[1] -= float(b[window[position]])
            kl.append((float((a.exp() * (a - b)).sum()), (number, position)))
            same += int(a.argmax() == b.argmax())
            count += 1
    assert scores.scored == count == 4 + 299 + 29
    assert scores.nll == pytest.approx(nll, rel=1e-6)
    assert scores.kl == pytest.approx(sum(k for k, _ in kl), rel=1e-5)
    worst, where = max(kl)
    assert (scores.kl_worst, scores.worst) == (pytest.approx(worst, rel=1e-5), where)
    assert scores.same == same
    assert scores.means() == (pytest.approx(nll[1] / count), pytest.approx(nll[0] / count))


def test_a_model_alone_and_a_model_beside_itself() -> None:
    one, ids = stream(1, (9,)), windows((9,))
    alone = score([one], ids, [1], lambda *_: None)
    assert alone.means()[1] is None
    twice = score([one, one], ids, [1], lambda *_: None)
    assert twice.means() == (alone.means()[0],) * 2
    assert (twice.kl, twice.same, twice.scored) == (0.0, 8, 8)


def test_progress_counts_windows() -> None:
    told: list[tuple[str, int, int]] = []
    score([stream(1, (3, 4))], windows((3, 4)), [1, 1], lambda *call: told.append(call))
    assert told == [("scores", 0, 2), ("scores", 1, 2), ("scores", 2, 2)]


def test_an_even_guess_costs_the_vocabularys_logarithm() -> None:
    flat: Any = Stream([torch.zeros(1, 6, VOCAB)])
    scores: Scores = score([flat], windows((6,)), [1], lambda *_: None)
    assert scores.means()[0] == pytest.approx(math.log(VOCAB))


def test_relative_rms() -> None:
    a: Any = Stream([torch.tensor([[[3.0, 4.0]]]), torch.zeros(1, 1, 2)])
    b: Any = Stream([torch.tensor([[[3.0, 4.5]]]), torch.tensor([[[0.0, 1.2]]])])
    assert relative_rms(a, b) == pytest.approx(1.3 / 5)
    assert relative_rms(a, a) == 0
    zero: Any = Stream([torch.zeros(1, 1, 2)])
    one: Any = Stream([torch.tensor([[[0.6, 0.8]]])])
    assert relative_rms(zero, one) == pytest.approx(1.0)  # nothing to divide by
