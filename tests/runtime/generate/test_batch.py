"""Continuations that join a batch and leave it at any time: each gets what it gets alone, in its turn."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import int8conv
from int8conv.errors import GenerationError
from int8conv.runtime.decoder.working_sizes import PREFILL_TOKENS
from int8conv.runtime.generate.batch import Batch, Member
from int8conv.runtime.model import Model

from .passes import watch_passes

OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 4, "top_p": 0.95},
    {"repetition_penalty": 1.2, "stop": "\n"},
    {"presence_penalty": 0.5, "min_new_tokens": 3},
    {"temperature": 0.7, "seed": 9, "min_p": 0.05},
]


@pytest.fixture(scope="module")
def model(example_int8: Path) -> Model:
    return int8conv.load(example_int8, mode="w8a16")


def run(batch: Batch) -> None:
    while not batch.is_idle:
        batch.step()


@pytest.mark.parametrize("kv_cache", [None, "int8"])
def test_each_gets_what_it_gets_alone(example_int8: Path, kv_cache: str | None) -> None:
    """Prompts of several lengths, options of several kinds, more of them than places; they come at any step."""
    model = int8conv.load(example_int8, mode="w8a16", kv_cache=kv_cache)
    texts = ["A vector is", "The function", "a list of\n", "A map has keys. " * 3]
    asked = [(texts[i % 4], {"max_new_tokens": 3 + 2 * i, **OPTIONS[i % 5]}) for i in range(9)]
    expected = [model.generate(text, **options) for text, options in asked]
    batch, chance, members = model.batch(3), random.Random(1), list[Member]()
    pieces: list[list[str]] = [[] for _ in asked]
    while len(members) < len(asked) or not batch.is_idle:
        if len(members) < len(asked) and chance.random() < 0.5:
            i = len(members)
            text, options = asked[i]
            members.append(batch.add(model.continuation(text, on_text=pieces[i].append, **options)))
        batch.step()
    assert [each.continuation.result() for each in members] == expected
    assert ["".join(each) for each in pieces] == [each.text for each in expected]


def test_they_begin_in_their_order_and_go_on_together(model: Model) -> None:
    batch, begun = model.batch(2), list[int]()

    def noted(i: int) -> Callable[[Any, Any], Any]:
        def process(ids: Any, logits: Any) -> Any:
            begun.append(i)
            return logits

        return process

    for i in range(4):
        assert batch.has_place == (i < 2)
        batch.add(model.continuation([5 + i, 6], max_new_tokens=3, logits_processor=noted(i)))
    run(batch)
    assert sorted(set(begun), key=begun.index) == [0, 1, 2, 3]
    assert begun.index(2) > len(begun) - 1 - begun[::-1].index(1) or begun.index(2) > 3
    assert begun[:4].count(0) == begun[:4].count(1) == 2
    assert batch.has_place


def test_what_a_prompt_begins_with_is_not_computed_again(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it was computed, and although others were computed since."""
    first, other = [5, 6, 7, 8, 9], [20, 21, 22]
    again = [*first, *model.generate(first, max_new_tokens=4).token_ids, 30]
    expected = model.generate(again, max_new_tokens=3).token_ids
    batch, passed = model.batch(3), list[tuple[int, ...]]()
    batch.add(model.continuation(other, max_new_tokens=9))
    batch.add(model.continuation(first, max_new_tokens=4))
    run(batch)
    watch_passes(model, monkeypatch, lambda shape: passed.append(tuple(shape)))
    members = [
        batch.add(model.continuation(p, max_new_tokens=3)) for p in ([40, 41], again, [*other, 23])
    ]
    run(batch)
    assert passed == [(1, 2), (1, 2), (1, 1), (3, 1), (3, 1)]
    assert members[1].continuation.token_ids == expected


@pytest.mark.parametrize("kv_cache", [None, "int8"])
def test_what_prompts_have_in_common_is_computed_once(
    example_int8: Path, monkeypatch: pytest.MonkeyPatch, kv_cache: str | None
) -> None:
    """Even while the one that has computed it goes on."""
    model = int8conv.load(example_int8, mode="w8a16", kv_cache=kv_cache)
    system = [5, 6, 7, 8, 9, 10]
    prompts = [[*system, 20, 21], [*system, 30], [*system, 20, 40]]
    expected = [model.generate(prompt, max_new_tokens=4).token_ids for prompt in prompts]
    batch, passed = model.batch(4), list[tuple[int, ...]]()
    watch_passes(model, monkeypatch, lambda shape: passed.append(tuple(shape)))
    members = [batch.add(model.continuation(prompt, max_new_tokens=4)) for prompt in prompts]
    run(batch)
    assert passed[:4] == [(1, 8), (1, 1), (1, 1), (3, 1)]
    assert [each.continuation.token_ids for each in members] == expected


def test_a_place_is_not_lost_to_a_prompt_that_shares_little_of_it(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [[5, 20 + i, 6, 7, 8] for i in range(3)]
    batch, passed = model.batch(3), list[tuple[int, ...]]()
    watch_passes(model, monkeypatch, lambda shape: passed.append(tuple(shape)))
    for prompt in prompts * 2:
        batch.add(model.continuation(prompt, max_new_tokens=1))
        run(batch)
    assert passed == [(1, 5), (1, 4), (1, 4), (1, 1), (1, 1), (1, 1)]


def test_a_long_prompt_is_read_between_the_steps_of_others(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PREFILL_TOKENS, "cpu", 4)
    batch, passed = model.batch(2), list[tuple[int, ...]]()
    one = batch.add(model.continuation([5, 6], max_new_tokens=6))
    batch.step()
    two = batch.add(model.continuation([*range(25, 35)], max_new_tokens=2))
    watch_passes(model, monkeypatch, lambda shape: passed.append(tuple(shape)))
    run(batch)
    assert passed == [(1, 4), (1, 1), (1, 4), (1, 1), (1, 2), (2, 1), (1, 1)]
    monkeypatch.undo()
    for member in (one, two):
        prompt, count = member.continuation.prompt, member.continuation.limit
        assert member.continuation.result() == model.generate(prompt, max_new_tokens=count)


def test_the_first_of_several_prompts_does_not_wait_for_the_others(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, passed = model.batch(4), list[tuple[int, ...]]()
    watch_passes(model, monkeypatch, lambda shape: passed.append(tuple(shape)))
    for prompt in ([*range(5, 25)], [*range(6, 26)], [7, 8], [8, 9]):
        batch.add(model.continuation(prompt, max_new_tokens=4))
    batch.step()
    assert passed == [(1, 20), (1, 1)]
    batch.step()
    batch.step()
    assert passed[2:] == [(1, 20), (2, 1), (1, 2), (1, 2), (4, 1)]


def test_removed_wherever_they_are(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PREFILL_TOKENS, "cpu", 4)
    batch = model.batch(2)
    kept, going = (batch.add(model.continuation([i, 6], max_new_tokens=8)) for i in (5, 7))
    batch.step()
    batch.remove(going)
    reading = batch.add(model.continuation([*range(5, 15)], max_new_tokens=2))
    waiting, last = (batch.add(model.continuation([i, 9], max_new_tokens=3)) for i in (8, 9))
    batch.step()
    batch.remove(reading)
    batch.remove(waiting)
    batch.remove(waiting)
    run(batch)
    found = [each.continuation.result() for each in (kept, going, reading, waiting, last)]
    assert [each.finish_reason for each in found] == ["length", "cancelled", "cancelled", "cancelled", "length"]  # fmt: skip
    assert found[0] == model.generate([5, 6], max_new_tokens=8)
    assert found[4] == model.generate([9, 9], max_new_tokens=3)
    assert batch.add(model.continuation([5], max_new_tokens=0)).ended


def test_an_error_is_its_members_own(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """In sampling and in memory for it; where a pass fails, all that took part have it, and those that come later go on."""

    def fails(ids: list[int], logits: Any) -> Any:
        if len(ids) == 4:
            raise ValueError("no more")
        return logits

    @contextmanager
    def none(positions: int, batch: int) -> Iterator[None]:
        raise GenerationError("no memory")
        yield

    batch = model.batch(3)
    bad, good = (
        batch.add(model.continuation([5, 6], max_new_tokens=5, logits_processor=hook))
        for hook in (fails, None)
    )
    batch.step()
    monkeypatch.setattr(batch, "_room", none)
    large = batch.add(model.continuation([5, 6], max_new_tokens=500))
    run(batch)
    assert [type(each.error) for each in (bad, good, large)] == [ValueError, type(None), GenerationError]  # fmt: skip
    assert bad.continuation.token_ids == good.continuation.token_ids[:2]
    broken = [batch.add(model.continuation([i, 6], max_new_tokens=4)) for i in (5, 7)]
    batch.step()
    with monkeypatch.context() as patch:
        patch.setattr(model.decoder, "forward", lambda *args, **options: 1 / 0)
        batch.step()
    assert [type(each.error) for each in broken] == [ZeroDivisionError] * 2
    after = batch.add(model.continuation([5, 6], max_new_tokens=4))
    run(batch)
    assert after.continuation.result() == model.generate([5, 6], max_new_tokens=4)
