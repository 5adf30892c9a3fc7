"""A cache that stays: what prompts have in common is computed once, and nothing of another prompt is left."""

from __future__ import annotations

from pathlib import Path

import pytest

import int8conv
from int8conv.runtime.generate.session import Session
from int8conv.runtime.model import Model

from .passes import watch_passes


@pytest.fixture
def passed() -> list[int]:
    """How many tokens each forward pass had."""
    return []


@pytest.fixture
def model(example_int8: Path, passed: list[int], monkeypatch: pytest.MonkeyPatch) -> Model:  # fmt: skip
    loaded = int8conv.load(example_int8, mode="w8a16")
    return watch_passes(loaded, monkeypatch, lambda shape: passed.append(shape[1]))


FIRST = [5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize(
    ("second", "computed"),
    [
        ([*FIRST, 11, 12], 2),
        ([5, 6, 7, 99, 98], 2),
        ([99, 5, 6], 3),
        (FIRST, 1),
        (FIRST[:3], 1),
    ],
)  # fmt: skip
def test_a_second_prompt_gives_what_it_gives_alone(
    model: Model, passed: list[int], second: list[int], computed: int
) -> None:
    expected = model.generate(second, max_new_tokens=10)
    session = Session(model.decoder)
    model.generate(FIRST, max_new_tokens=3, session=session)
    passed.clear()
    assert model.generate(second, max_new_tokens=10, session=session) == expected
    assert passed == [computed] + [1] * 9


def test_what_was_generated_is_kept_too(model: Model, passed: list[int]) -> None:
    session = Session(model.decoder)
    reply = model.generate(FIRST, max_new_tokens=4, session=session).token_ids
    assert session.token_ids == FIRST + reply[:-1]
    longer = [*FIRST, *reply, 44, 45]
    expected = model.generate(longer, max_new_tokens=30)
    passed.clear()
    assert model.generate(longer, max_new_tokens=30, session=session) == expected
    assert passed[0] == 3


def test_an_interrupted_prompt_leaves_no_trace(model: Model) -> None:
    session = Session(model.decoder)
    model.generate(FIRST, max_new_tokens=2, session=session)

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    other = [5, 6, 70, 71, 72]
    with pytest.raises(KeyboardInterrupt):
        model.generate(other, max_new_tokens=9, session=session, on_text=interrupt)
    assert session.token_ids == [5, 6]
    expected = model.generate(FIRST, max_new_tokens=9)
    assert model.generate(FIRST, max_new_tokens=9, session=session) == expected


def test_nothing_to_generate(model: Model) -> None:
    session = Session(model.decoder)
    assert model.generate(FIRST, max_new_tokens=0, session=session).token_ids == []
    assert session.token_ids == []
