"""Guessed tokens: where they come from, whether they pay, and that they never change a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import int8conv
from int8conv.errors import ArgumentError
from int8conv.runtime.decoder.decoder import Decoder
from int8conv.runtime.generate import lookup
from int8conv.runtime.generate.lookup import LONGEST, Guesses, Pace, can_guess
from int8conv.runtime.generate.session import Session
from int8conv.runtime.model import Model

from .passes import watch_passes

COPYING = "A vector is a Buffer. " * 6
OPTIONS: list[dict[str, Any]] = [
    {"logprobs": True, "top_logprobs": 2},
    {"temperature": 1.0, "seed": 5, "top_k": 2},
    {"repetition_penalty": 1.05, "stop": "const"},
    {"presence_penalty": 0.3, "min_new_tokens": 20},
]


class Clock:
    """Each look at it is a second later: whatever a pass gives, it takes as long as a step."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def model(example_int8: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    monkeypatch.setattr(lookup, "Pace", lambda: Pace(Clock()))
    return int8conv.load(example_int8, mode="w8a16")


def test_guesses_are_what_followed_the_longest_words_last() -> None:
    assert Guesses([1, 2, 3]).next(4) == []
    assert Guesses([1, 2, 3, 9, 1, 2]).next(2) == [3, 9]
    assert Guesses([1, 2, 3, 7, 1, 2, 4, 1, 2]).next(1) == [4]  # the newest
    assert Guesses([9, 1, 2, 3, 8, 1, 2, 4, 9, 1, 2]).next(2) == [3, 8]  # three words before two
    assert Guesses([5, 6, 5, 6]).next(5) == [5, 6, 5, 6, 5]  # a loop goes on
    grown = Guesses([1, 2])
    for token in (3, 1, 2):
        grown.push(token)
    assert grown.next(1) == [3]


def test_they_pause_while_they_do_not_pay() -> None:
    pace = Pace()
    assert not pace.guesses
    pace.stepped(1.0)
    assert (pace.guesses, pace.most) == (True, 3)
    pace.checked(3, 4, 1.2)
    pace.checked(7, 8, 1.5)
    assert (pace.guesses, pace.most) == (True, LONGEST)
    pace.checked(LONGEST, 1, 1.3)  # one bad guess among good ones
    assert (pace.guesses, pace.most) == (True, 3)
    tries = 0
    while pace.guesses:
        pace.checked(3, 1, 1.3)
        tries += 1
    assert 1 < tries < 9
    for _ in range(15):
        pace.stepped(1.0)
    assert not pace.guesses
    pace.stepped(1.0)
    assert pace.guesses
    for _ in range(3):
        assert pace.guesses
        pace.checked(3, 1, 1.3)  # still not: twice as long
    for _ in range(31):
        pace.stepped(1.0)
    assert not pace.guesses


def test_a_first_step_that_compiles_counts_no_longer_after_the_second() -> None:
    """Nor does a first pass that does."""
    pace = Pace()
    pace.stepped(10.0)
    pace.stepped(1.0)
    for _ in range(3):
        assert pace.guesses
        pace.checked(3, 1, 1.3)
    assert not pace.guesses
    pace = Pace()
    pace.stepped(1.0)
    pace.checked(3, 4, 10.0)
    pace.checked(3, 4, 2.0)
    pace.checked(7, 8, 2.0)
    assert pace.guesses


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_texts_are_the_same(
    model: Model, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampling, edits and stops too; with fewer passes."""
    asked: dict[str, Any] = {"max_new_tokens": 60, **options}
    expected = model.generate(COPYING, **asked)
    passes: list[int] = []
    watch_passes(model, monkeypatch, lambda shape: passes.append(shape[1]))
    found = model.generate_batch([COPYING], prompt_lookup=True, **asked)[0]
    assert found.token_ids == expected.token_ids
    assert (found.text, found.finish_reason) == (expected.text, expected.finish_reason)
    if expected.logprobs is not None:
        assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-3)
    assert len(passes) - 1 < len(expected.token_ids)
    assert max(passes[1:]) > 3


def test_a_session_has_what_was_right_alone(model: Model) -> None:
    session = Session(model.decoder)
    first = model.generate(COPYING, max_new_tokens=40, session=session, prompt_lookup=True)
    ids = [*model.token_ids(COPYING), *first.token_ids]
    assert session.token_ids == ids[: len(session.token_ids)]
    assert len(session.token_ids) >= len(ids) - 1
    again = model.generate([*ids, 5, 6], max_new_tokens=9, session=session, prompt_lookup=True)
    assert again.token_ids == model.generate([*ids, 5, 6], max_new_tokens=9).token_ids
    with model.stream(COPYING, max_new_tokens=40, session=session, prompt_lookup=True) as stream:
        for _ in range(6):
            stream.step()
    shown = [*model.token_ids(COPYING), *stream.result.token_ids]
    assert session.token_ids == shown[: len(session.token_ids)]


def test_a_plain_step_decides_between_two_that_are_close(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass of several tokens errs by less than ``_CLOSE``, so that the most likely token would be another."""
    expected = model.generate(COPYING, max_new_tokens=40)
    forward, tops = model.decoder.forward, list[Tensor]()

    def erring(ids: Tensor, *args: Any, **options: Any) -> Tensor:
        logits = forward(ids, *args, **options).clone()
        if 1 < ids.shape[1] <= LONGEST + 1 and not options.get("last_only"):
            tops.append(logits)
            best = logits.topk(2).values
            close = best[..., :1] - best[..., 1:] < 30
            logits = torch.where(close, logits * 1e-4, logits)  # a tie, but for rounding
            logits = torch.where(close, logits.flip(-1), logits)
        return logits

    monkeypatch.setattr(model.decoder, "forward", erring)
    found = model.generate(COPYING, max_new_tokens=40, prompt_lookup=True)
    assert tops
    assert found.token_ids == expected.token_ids


def test_where_there_are_no_guesses(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArgumentError, match="prompt_lookup: expected one prompt, found 2"):
        model.generate_batch(["a", "b"], prompt_lookup=True)
    assert model.generate_batch([], prompt_lookup=True) == []
    assert model.generate(COPYING, max_new_tokens=0, prompt_lookup=True).token_ids == []
    assert can_guess(model.decoder)
    passes: list[int] = []
    watch_passes(model, monkeypatch, lambda shape: passes.append(shape[1]))
    monkeypatch.setattr("int8conv.runtime.model.can_guess", lambda decoder: False)
    model.generate(COPYING, max_new_tokens=9, prompt_lookup=True)
    assert passes[1:] == [1] * 8


@pytest.mark.parametrize(("kind", "possible"), [("llama3", True), ("dynamic", False), ("longrope", False)])  # fmt: skip
def test_frequencies_that_grow_allow_none(kind: str, possible: bool) -> None:
    class Growing:
        grows = kind in ("dynamic", "longrope")

    class Model:
        class config:
            recurrence = None

        class embedding:
            rotaries = (Growing(),)

    decoder: Any = Model
    assert can_guess(decoder) is possible
    Model.config.recurrence = object()  # type: ignore[assignment]
    assert not can_guess(decoder)
    assert Decoder is not None
