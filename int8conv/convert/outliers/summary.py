"""A summary of statistics, and what the default rule would choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...formats.int8.stats import LARGE, Stats
from .collect import systematic_dimensions
from .rule import Choosing, choose_all


@dataclass(frozen=True)
class InputSummary:
    """Summary of one input's activations."""

    channels: int
    median_absmax: float
    """Median and maximum over the channels."""
    absmax: float
    channels_from_6: int
    """Channels that reach 6.0, the threshold of LLM.int8()."""
    columns: int
    """Columns that the default rule keeps in 16 bits."""
    threshold: float | None
    """Magnitude from which the outlier fallback multiplies an activation in 16 bits; 0: all activations, None: unknown."""


@dataclass(frozen=True)
class StatsSummary:
    """Summary of a checkpoint's statistics."""

    stats: Stats
    systematic_dimensions: tuple[int, ...]
    """LLM.int8()'s outlier dimensions of the hidden state (arXiv:2208.07339, section 4.1)."""
    inputs: dict[str, InputSummary]
    """Keyed by the path of the input's first linear."""

    def to_json(self) -> dict[str, Any]:
        stats = self.stats
        return {
            "source": stats.source, "fingerprint": stats.fingerprint,
            "tokens": stats.tokens, "context": stats.context,
            "systematic_dimensions": list(self.systematic_dimensions),
            "inputs": {path: vars(found) for path, found in self.inputs.items()},
        }  # fmt: skip


def summarize_stats(stats: Stats) -> StatsSummary:
    """Summarize statistics."""
    choices = choose_all(stats, Choosing())
    inputs = {
        path: InputSummary(
            len(found.absmax), float(np.median(found.absmax)), float(found.absmax.max()),
            int(np.count_nonzero(found.absmax >= LARGE)),
            len(choices[path].columns), choices[path].threshold,
        )
        for path, found in stats.inputs.items()
    }  # fmt: skip
    return StatsSummary(stats, tuple(systematic_dimensions(stats).tolist()), inputs)
