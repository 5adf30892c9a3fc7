"""Units done are summed up, whoever does them, and told one at a time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from int8conv.progress import counted, silent


def test_units_are_summed_and_every_call_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    advance = counted(lambda *news: told.append(news), "convert", 10)
    assert told == []
    for units in (3, 0, 7):
        advance(units)
    assert told == [("convert", 3, 10), ("convert", 3, 10), ("convert", 10, 10)]


def test_stages_have_counts_of_their_own() -> None:
    told: list[tuple[str, int, int]] = []
    first, second = (counted(lambda *news: told.append(news), name, 4) for name in "ab")
    first(1)
    second(2)
    first(3)
    assert told == [("a", 1, 4), ("b", 2, 4), ("a", 4, 4)]


def test_many_threads_lose_nothing() -> None:
    told: list[int] = []
    advance = counted(lambda stage, done, total: told.append(done), "x", 400)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(advance, [1] * 400))
    assert told == list(range(1, 401))


def test_it_is_never_told_by_two_threads_at_once() -> None:
    """The second has to wait until the first has been told."""
    inside, second_inside, order = threading.Event(), threading.Event(), list[int]()

    def progress(stage: str, done: int, total: int) -> None:
        if inside.is_set():
            second_inside.set()
        else:
            inside.set()
            assert not second_inside.wait(0.1)  # time in which it would come, if it could
        order.append(done)

    advance = counted(progress, "x", 3)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(advance, 1)
        assert inside.wait(60)
        second = threads.submit(advance, 2)
        first.result()
        second.result()
    assert order == [1, 3]


def test_nobody_need_listen() -> None:
    counted(silent, "x", 1)(1)
