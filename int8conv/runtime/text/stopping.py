"""Find stop strings in text that arrives in pieces, even across pieces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ...errors import ArgumentError


def read_stops(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """One string, several or none, as a tuple.

    Raises:
        ArgumentError: one is empty or not a string.
    """
    expected = "strings that are not empty"
    if isinstance(stop, Mapping) or (stop is not None and not isinstance(stop, Iterable)):
        raise ArgumentError("stop", expected=expected, found=repr(stop))
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    for each in stops:
        if not isinstance(each, str) or not each:
            raise ArgumentError("stop", expected=expected, found=repr(each))
    return stops


class StopScanner:
    """Passes text on up to the first complete stop string; holds back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """Add text; returns what can be shown."""
        text, self._held = self._held + piece, ""
        if self.stopped:
            return ""
        ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in self._stops if stop in text]  # fmt: skip
        if ends:
            self.stopped = True
            return text[: min(ends)[1]]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """The text that was held back, now that no stop string can be completed."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of a text that is a proper prefix of a stop string."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
