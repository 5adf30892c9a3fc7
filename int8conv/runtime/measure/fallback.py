"""What the safety net took in a run: whether calibration saw what this text brought."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...kernels import NetCounter


@dataclass(frozen=True)
class InputNet:
    """One input's net."""

    input: str
    """Path of the input's first linear."""
    tokens: int
    """That went through W8A8."""
    tokens_caught: int
    """Of them, with at least one value past the threshold outside of the stored columns."""
    values: int
    """Such values."""
    channels: dict[int, int]
    """Values of each channel that had any, the most first."""


@dataclass(frozen=True)
class NetReport:
    """All inputs that have a net."""

    inputs: tuple[InputNet, ...]

    @property
    def tokens(self) -> int:
        """Most tokens that went through W8A8 at one input."""
        return max((found.tokens for found in self.inputs), default=0)

    @property
    def values(self) -> int:
        return sum(found.values for found in self.inputs)

    @property
    def caught(self) -> list[InputNet]:
        """Inputs at which the net took something, the most first."""
        return sorted((i for i in self.inputs if i.values), key=lambda i: -i.values)

    def to_json(self) -> dict[str, Any]:
        return {
            found.input: {
                "tokens": found.tokens, "tokens_caught": found.tokens_caught, "values": found.values,
                "channels": {str(channel): count for channel, count in found.channels.items()},
            }
            for found in self.inputs
        }  # fmt: skip


def net_report(counters: Mapping[str, NetCounter]) -> NetReport:
    """The counts so far."""
    return NetReport(tuple(_input(path, counter) for path, counter in counters.items()))


def _input(path: str, counter: NetCounter) -> InputNet:
    order = counter.caught.argsort(descending=True, stable=True)
    channels = {int(c): int(counter.caught[c]) for c in order[: int((counter.caught > 0).sum())]}
    values = int(counter.caught.sum())
    return InputNet(path, counter.tokens, counter.tokens_caught, values, channels)
