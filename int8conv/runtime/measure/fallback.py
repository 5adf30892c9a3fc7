"""The values handled by the outlier fallback in a run: whether calibration covers this text."""

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
    """Tokens computed in W8A8."""
    fallback_tokens: int
    """Tokens with at least one value at or above the threshold outside the stored columns."""
    values: int
    """Number of such values."""
    channels: dict[int, int]
    """Number of values per channel that had any, largest first."""


@dataclass(frozen=True)
class FallbackReport:
    """All inputs that have a fallback."""

    inputs: tuple[InputFallback, ...]

    @property
    def tokens(self) -> int:
        """Largest number of tokens computed in W8A8 at any input."""
        return max((found.tokens for found in self.inputs), default=0)

    @property
    def values(self) -> int:
        return sum(found.values for found in self.inputs)

    @property
    def used(self) -> list[InputFallback]:
        """Inputs where the fallback was used, largest number of values first."""
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
