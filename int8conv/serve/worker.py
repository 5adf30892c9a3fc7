"""The one thread that computes, and the requests that wait for it in their order."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

_END: Final = object()


class Shared(Protocol):
    """What running jobs compute together; ``runtime.generate.batch.Batch`` is one."""

    @property
    def has_place(self) -> bool:
        """Whether one more job could begin."""

    def step(self) -> None:
        """Go on with all of them; does nothing if there are none."""


class Job:
    """One request: what it gives comes in an asynchronous queue."""

    # jobs of one worker give different things
    def __init__(self, work: Callable[[], Iterator[Sequence[Any]]]) -> None:
        """``work``: its results, in the worker's thread, those of a step at a time; closed when nobody waits for them any more."""
        self._begin = work
        self._work: Iterator[Sequence[Any]] | None = None
        self._loop = asyncio.get_running_loop()
        self._results: asyncio.Queue[Any] = asyncio.Queue()
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    async def results(self) -> Any:  # an asynchronous iterator over what the work gives
        """Each result as it comes.

        Raises:
            Exception: what the work raised.
        """
        while (found := await self._results.get()) is not _END:
            if isinstance(found, BaseException):
                raise found
            yield found

    def advance(self) -> bool:
        """In the worker's thread: pass on what has come since -> whether more will come."""
        try:
            if not self.is_cancelled:
                self._work = self._work or self._begin()
                for found in next(self._work):
                    self._tell(found)
                return True
        except StopIteration:
            pass
        except Exception as error:
            self._tell(error)
        self._end()
        return False

    def fail(self, error: Exception) -> None:
        """End it with an error."""
        self._tell(error)
        self._end()

    def _end(self) -> None:
        close = getattr(self._work, "close", None)
        if close is not None:
            close()
        self._tell(_END)

    def _tell(self, found: object) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._results.put_nowait, found)


class Worker:
    """Runs jobs: they begin in their order, as soon as there is a place, and go on together."""

    def __init__(self, most_waiting: int, shared: Shared) -> None:
        self._most_waiting = most_waiting
        self._jobs: deque[Job] = deque()
        """Those that wait, guarded by ``_changed``."""
        self._changed = threading.Condition()
        self._closed = False
        self._shared = shared
        self._running: list[Job] = []
        self._thread = threading.Thread(target=self._run, name="int8conv", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> bool:
        """Whether there was room to wait."""
        with self._changed:
            self._dismiss_cancelled()
            if len(self._jobs) >= self._most_waiting:
                return False
            self._jobs.append(job)
            self._changed.notify()
        return True

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        with self._changed:
            self._dismiss_cancelled()
            return len(self._jobs)

    def close(self) -> None:
        """End, once what waits is done."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _dismiss_cancelled(self) -> None:
        """Clients that have gone take no room of those that wait."""
        for job in [each for each in self._jobs if each.is_cancelled]:
            self._jobs.remove(job)
            job.advance()  # ends it

    def _run(self) -> None:
        while self._begin():
            self._go_on()

    def _begin(self) -> bool:
        """Begin what has a place, and wait for something if nothing runs -> False at the end."""
        while not self._running or self._shared.has_place:
            with self._changed:
                while not (self._jobs or self._running or self._closed):
                    self._changed.wait()
                if not self._jobs:
                    return bool(self._running)
                job = self._jobs.popleft()
            if job.advance():
                self._running.append(job)
        return True

    def _go_on(self) -> None:
        try:
            self._shared.step()
        except Exception as error:
            for job in self._running:
                job.fail(error)
            self._running.clear()
        self._running = [job for job in self._running if job.advance()]
