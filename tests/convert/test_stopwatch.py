"""Seconds by stage, with a clock that the test sets."""

from __future__ import annotations

import pytest

from int8conv.convert import stopwatch
from int8conv.convert.stopwatch import Stopwatch


class Clock:
    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stopwatch, "time", clock)
    return clock


def test_each_lap_is_from_the_one_before(clock: Clock) -> None:
    watch = Stopwatch()
    for stage, until in (("read", 102), ("write", 107), ("read", 107.5)):
        clock.now = until
        watch.lap(stage)
    assert watch.seconds == {"read": 2.5, "write": 5}


def test_start_leaves_out_what_came_before(clock: Clock) -> None:
    watch = Stopwatch()
    clock.now = 150
    watch.start()
    clock.now = 151
    watch.lap("read")
    assert watch.seconds == {"read": 1}


def test_threads_are_added_up(clock: Clock) -> None:
    watches = [Stopwatch(), Stopwatch()]
    clock.now = 103
    watches[0].lap("read")
    watches[1].lap("read")
    clock.now = 104
    watches[1].lap("write")
    watches[0].add(watches[1])
    assert watches[0].seconds == {"read": 6, "write": 1}
    assert watches[1].seconds == {"read": 3, "write": 1}
