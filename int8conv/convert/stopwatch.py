"""Time spent per stage."""

from __future__ import annotations

import time
from collections import defaultdict


class Stopwatch:
    """Seconds per stage; each ``lap`` adds the time since the previous lap to a stage. One stopwatch per thread."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    def start(self) -> None:
        """Discard the time since the last lap."""
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] += now - self._last
        self._last = now

    def add(self, other: Stopwatch) -> None:
        """Add another thread's stages."""
        for stage, seconds in other.seconds.items():
            self.seconds[stage] += seconds
