"""The one thread that computes, and the requests that wait for it in their order."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

_END: Final = object()


class Job:
    """One request: what it gives comes in an asynchronous queue."""

    # jobs of one worker give different things
    def __init__(self, work: Callable[[], Iterator[Any]]) -> None:
        """``work``: its results one by one, in the worker's thread, which looks after each whether it is still wanted."""
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._results: asyncio.Queue[Any] = asyncio.Queue()
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self._cancelled.set()

    async def results(self) -> Any:  # an asynchronous iterator over what the work gives
        """Each result as it comes.

        Raises:
            Exception: what the work raised.
        """
        while (found := await self._results.get()) is not _END:
            if isinstance(found, BaseException):
                raise found
            yield found

    def run(self) -> None:
        """In the worker's thread."""
        if self._cancelled.is_set():
            return
        work = self._work()
        try:
            for found in work:
                if self._cancelled.is_set():
                    break
                self._tell(found)
        except Exception as error:
            self._tell(error)
        finally:
            close = getattr(work, "close", None)
            if close is not None:
                close()
            self._tell(_END)

    def _tell(self, found: object) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._results.put_nowait, found)


class Worker:
    """Runs jobs one after the other."""

    def __init__(self, most_waiting: int) -> None:
        self._jobs: queue.Queue[Job | None] = queue.Queue(most_waiting)
        self._thread = threading.Thread(target=self._run, name="int8conv", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> bool:
        """Whether there was room to wait."""
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            return False
        return True

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        return self._jobs.qsize()

    def close(self) -> None:
        """End, once what waits is done."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.run()
