"""What the outlier fallback took in a run: whether calibration saw what this text brought."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...kernels.weight import FallbackCounter


@dataclass(frozen=True)
class InputFallback:
    """One input's fallback."""

    input: str
    """Path of the input's first linear."""
    tokens: int
    """That went through W8A8."""
    fallback_tokens: int
    """Of them, with at least one value past the threshold outside of the stored columns."""
    values: int
    """Such values."""
    channels: dict[int, int]
    """Values of each channel that had any, the most first."""


@dataclass(frozen=True)
class FallbackReport:
    """All inputs that have a fallback."""

    inputs: tuple[InputFallback, ...]

    @property
    def tokens(self) -> int:
        """Most tokens that went through W8A8 at one input."""
        return max((found.tokens for found in self.inputs), default=0)

    @property
    def values(self) -> int:
        return sum(found.values for found in self.inputs)

    @property
    def used(self) -> list[InputFallback]:
        """Inputs at which the fallback took something, the most first."""
        return sorted((i for i in self.inputs if i.values), key=lambda i: -i.values)

    def to_json(self) -> dict[str, Any]:
        return {
            found.input: {
                "tokens": found.tokens, "fallback_tokens": found.fallback_tokens, "values": found.values,
                "channels": {str(channel): count for channel, count in found.channels.items()},
            }
            for found in self.inputs
        }  # fmt: skip


def fallback_report(counters: Mapping[str, FallbackCounter]) -> FallbackReport:
    """The counts so far."""
    return FallbackReport(tuple(_input(path, counter) for path, counter in counters.items()))


def _input(path: str, counter: FallbackCounter) -> InputFallback:
    order = counter.fallback.argsort(descending=True, stable=True)
    channels = {
        int(c): int(counter.fallback[c]) for c in order[: int((counter.fallback > 0).sum())]
    }
    values = int(counter.fallback.sum())
    return InputFallback(path, counter.tokens, counter.fallback_tokens, values, channels)
