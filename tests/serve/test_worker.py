"""The thread that computes: jobs begin in their order, go on together, and end with their clients."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

from int8conv.serve.worker import Job, Worker


class Steps:
    """What jobs share, with so many places."""

    def __init__(self, places: int) -> None:
        self.places, self.taken, self.count = places, 0, 0
        self.fails = False

    @property
    def has_place(self) -> bool:
        return self.taken < self.places

    def step(self) -> None:
        self.count += 1
        if self.fails:
            self.fails = False
            raise RuntimeError("broken")

    def counting(self, name: str, count: int, seen: list[str]) -> Callable[[], Iterator[list[Any]]]:
        """Work of so many steps."""

        def work() -> Iterator[list[Any]]:
            self.taken += 1
            try:
                for i in range(count):
                    seen.append(name)
                    yield [i]
                    yield []
            finally:
                self.taken -= 1
                seen.append(f"{name} ends")

        return work


async def all_of(job: Job) -> list[Any]:
    return [each async for each in job.results()]


def test_jobs_begin_in_their_order_and_go_on_together() -> None:
    seen: list[str] = []

    async def clients() -> list[list[Any]]:
        steps, first = Steps(2), threading.Event()
        worker = Worker(9, steps)
        hold = Job(lambda: iter([[first.wait()]]))  # until all have come
        jobs = [Job(steps.counting(name, count, seen)) for name, count in (("a", 3), ("b", 1), ("c", 2))]  # fmt: skip
        assert all(worker.submit(job) for job in (hold, *jobs))
        first.set()
        found = [await all_of(job) for job in jobs]
        await asyncio.to_thread(worker.close)
        return found

    assert asyncio.run(clients()) == [[0, 1, 2], [0], [0, 1]]
    assert seen == ["a", "b", "a", "b ends", "c", "a", "c", "a ends", "c ends"]


def test_a_client_that_goes_away_ends_its_generation() -> None:
    """The next request is computed; what it left does not go on."""
    computed, going = [], threading.Event()

    def endless() -> Iterator[list[int]]:
        try:
            for i in range(10**9):
                going.set()
                yield [i]
        finally:
            computed.append("closed")

    async def clients() -> list[int]:
        worker = Worker(1, Steps(0))
        gone, waits, late = Job(endless), Job(lambda: iter([[1, 2]])), Job(lambda: iter([[3]]))
        assert worker.submit(gone)
        await asyncio.to_thread(going.wait)
        assert worker.submit(waits)
        assert not worker.submit(late)  # full
        assert worker.waiting == 1
        gone.cancel()
        found = await all_of(waits)
        await asyncio.to_thread(worker.close)
        return found

    assert asyncio.run(clients()) == [1, 2]
    assert computed == ["closed"]


def test_one_that_went_before_its_turn_never_begins() -> None:
    begun: list[int] = []

    async def clients() -> list[int]:
        worker = Worker(9, Steps(0))
        ready = threading.Event()
        hold, gone = Job(lambda: iter([[ready.wait()]])), Job(lambda: iter([begun.append(1)]))  # type: ignore[list-item, func-returns-value]
        assert worker.submit(hold)
        assert worker.submit(gone)
        gone.cancel()
        ready.set()
        found = await all_of(gone)
        await asyncio.to_thread(worker.close)
        return found

    assert asyncio.run(clients()) == []
    assert not begun


def test_clients_that_have_gone_take_no_room_of_those_that_wait() -> None:
    begun: list[int] = []

    async def clients() -> list[list[Any]]:
        worker = Worker(2, Steps(0))
        ready, going = threading.Event(), threading.Event()
        hold = Job(lambda: iter([[going.set(), ready.wait()]]))  # type: ignore[func-returns-value]
        assert worker.submit(hold)
        await asyncio.to_thread(going.wait)
        gone = [Job(lambda: iter([[begun.append(1)]])) for _ in range(2)]  # type: ignore[func-returns-value]
        assert all(map(worker.submit, gone))
        assert worker.waiting == 2
        for job in gone:
            job.cancel()
        assert worker.waiting == 0
        late = Job(lambda: iter([[3]]))
        assert worker.submit(late)
        found = [await all_of(job) for job in gone]  # they end, while others are computed
        ready.set()
        found.append(await all_of(late))
        await asyncio.to_thread(worker.close)
        return found

    assert asyncio.run(clients()) == [[], [], [3]]
    assert not begun


def test_errors_go_to_whom_they_belong() -> None:
    """One of a job to its client; one of the step that all share to everybody; then others are served."""
    seen: list[str] = []

    def wrong() -> Iterator[list[int]]:
        yield [1]
        raise ValueError("mine")

    async def clients() -> list[Any]:
        steps = Steps(9)
        worker, found = Worker(9, steps), []

        async def told(*jobs: Job) -> None:
            assert all(worker.submit(job) for job in jobs)
            came = await asyncio.gather(*map(all_of, jobs), return_exceptions=True)
            found.extend(each if isinstance(each, list) else str(each) for each in came)

        await told(Job(wrong), Job(steps.counting("a", 2, seen)))
        ready = threading.Event()

        def breaks() -> Iterator[list[int]]:
            ready.wait()
            steps.fails = True
            yield [1]
            yield [2]

        broken = asyncio.create_task(told(Job(breaks), Job(steps.counting("b", 2, seen))))
        await asyncio.sleep(0)
        ready.set()
        await broken
        await told(Job(lambda: iter([[7]])))
        await asyncio.to_thread(worker.close)
        return found

    assert asyncio.run(clients()) == ["mine", [0, 1], "broken", "broken", [7]]
    assert seen[-2:] == ["b", "b ends"]
