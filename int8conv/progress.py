"""Progress of long-running work, reported to one callback. Imports nothing from the package."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int], object]
"""Called with the stage's name, the units done so far and the total; possibly from other threads, but never concurrently."""
Advance: TypeAlias = Callable[[int], None]
"""Called from any thread with the units done since the last call."""


def silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""


def counted(progress: Progress, stage: str, total: int) -> Advance:
    """A function that adds up the units of a stage and reports them to ``progress``."""
    done, lock = 0, threading.Lock()

    def advance(units: int) -> None:
        nonlocal done
        with lock:
            done += units
            progress(stage, done, total)

    return advance
