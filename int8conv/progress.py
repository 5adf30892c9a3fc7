"""How work that takes a while tells how far it is: one callback for all of it. Imports nothing of the package."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int], object]
"""Called with a stage's name, units done so far, and units in all; perhaps from other threads, but never from two at once."""
Advance: TypeAlias = Callable[[int], None]
"""Called with the units done since the last call, from any thread."""


def silent(stage: str, done: int, total: int) -> None:
    """Nobody wants to know."""


def counted(progress: Progress, stage: str, total: int) -> Advance:
    """Sum up the units of a stage for ``progress``."""
    done, lock = 0, threading.Lock()

    def advance(units: int) -> None:
        nonlocal done
        with lock:
            done += units
            progress(stage, done, total)

    return advance
