"""Scores of continuations equal those of the logits of all positions, however they are batched; shared prefixes are computed once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import int8conv
from int8conv.errors import ArgumentError, GenerationError
from int8conv.runtime.generate import likelihood
from int8conv.runtime.generate.likelihood import Likelihood
from int8conv.runtime.model import Model

from .passes import watch_passes

PREFIX = [5, 6, 7, 8, 9, 10]
REQUESTS = [
    (PREFIX, [11, 12, 13]),
    ([40], [41, 42]),
    (PREFIX, [14]),
    (PREFIX, [11, 12, 99]),
    (PREFIX, [15]),
    ([*PREFIX, 20, 21], [22, 23, 24, 25]),
    (PREFIX, []),
    (PREFIX, [11, 12, 13]),
]


@pytest.fixture
def passed() -> list[tuple[int, ...]]:
    """The token ids' shape of each forward pass."""
    return []


@pytest.fixture
def model(example_int8: Path, passed: list[Any], monkeypatch: pytest.MonkeyPatch) -> Model:  # fmt: skip
    loaded = int8conv.load(example_int8, mode="w8a16")
    return watch_passes(loaded, monkeypatch, lambda shape: passed.append(tuple(shape)))


def by_logits(model: Model, prefix: list[int], continuation: list[int]) -> Likelihood:
    logs = model.logits(torch.tensor([[*prefix, *continuation]]))[0].log_softmax(-1)
    where = range(len(prefix) - 1, len(prefix) + len(continuation) - 1)
    chosen = [float(logs[i, token]) for i, token in zip(where, continuation, strict=True)]
    best = [int(logs[i].argmax()) for i in where]
    return Likelihood(chosen, best == continuation)


def check(found: list[Likelihood], expected: list[Likelihood]) -> None:
    assert [each.is_greedy for each in found] == [each.is_greedy for each in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=2e-5)
        assert one.total == pytest.approx(sum(other.logprobs), abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_scores_are_those_of_all_logits(model: Model, batch_size: int) -> None:
    expected = [by_logits(model, *request) for request in REQUESTS]
    check(model.score(REQUESTS, batch_size), expected)


def test_integer_activations_do_not_depend_on_the_batch(example_int8: Path) -> None:
    model = int8conv.load(example_int8, mode="w8a8")
    check(model.score(REQUESTS, 1), model.score(REQUESTS, 8))


def test_a_prefix_is_computed_once(model: Model, passed: list[tuple[int, ...]]) -> None:
    model.score(REQUESTS, 8)
    tokens = sum(rows * width for rows, width in passed)
    # [40]: its 2. PREFIX without its last, then rows [10] and [10, 11, 12] padded. Longer prefix: [10, 20], then 4.
    assert passed == [(1, 5), (2, 3), (1, 2), (1, 4), (1, 2)]
    assert tokens == 5 + 6 + 2 + 4 + 2


def test_a_greedy_continuation_is_called_so(model: Model) -> None:
    written = model.generate(PREFIX, max_new_tokens=6, temperature=0, logprobs=True)
    (found,) = model.score([(PREFIX, written.token_ids)])
    assert found.is_greedy
    assert found.logprobs == pytest.approx(written.logprobs, abs=2e-5)
    other = [*written.token_ids[:-1], written.token_ids[-1] ^ 1]
    assert not model.score([(PREFIX, other)])[0].is_greedy


def test_long_continuations_pass_in_parts(
    model: Model, passed: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [([3], list(range(4, 40))), ([3], [*range(4, 30), 2])]
    expected = [by_logits(model, *request) for request in requests]
    passed.clear()
    monkeypatch.setattr(likelihood, "_LOGITS_AT_ONCE", 20 * model.config.vocab_size)
    check(model.score(requests), expected)
    assert passed == [(2, 10), (2, 10), (2, 10), (2, 6)]


def test_texts_are_split_where_the_prefix_ends(model: Model) -> None:
    prefix, text = "A vector is", " a list of numbers"
    ids = [model.tokenizer.encode(each) for each in (prefix, prefix + text)]
    by_text, by_ids = model.score([(prefix, text)]), model.score([(ids[0], ids[1][len(ids[0]) :])])
    assert by_text == by_ids


def test_what_cannot_be_scored(model: Model) -> None:
    assert model.score([]) == []
    for requests, error, words in (
        ([([], [1])], GenerationError, "prefix has no tokens"),
        ([([1], [10**6])], GenerationError, "outside the vocabulary"),
        (
            [([1], [1] * (model.config.max_positions + 1))],
            GenerationError,
            "do not fit the context",
        ),
        ([("text", [1])], ArgumentError, "two texts"),
    ):
        with pytest.raises(error, match=words):
            model.score(requests)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="batch_size"):
        model.score(REQUESTS, 0)
