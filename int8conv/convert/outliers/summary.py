"""What statistics show, and what the default rule makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...formats.int8.stats import LARGE, Stats
from .collect import systematic_dimensions
from .rule import Choosing, choose_all


@dataclass(frozen=True)
class InputSummary:
    """One input's activations."""

    channels: int
    median_absmax: float
    """Over the channels."""
    absmax: float
    channels_from_6: int
    """Channels that reach 6.0, the threshold of LLM.int8()."""
    columns: int
    """That the default rule keeps in 16 bits."""
    threshold: float | None
    """From which the outlier fallback takes an activation; 0: all of them, None: none is known."""


@dataclass(frozen=True)
class StatsSummary:
    """Statistics of a checkpoint, summed up."""

    stats: Stats
    systematic_dimensions: tuple[int, ...]
    """LLM.int8()'s outlier dimensions of the hidden state (arXiv:2208.07339, section 4.1)."""
    inputs: dict[str, InputSummary]
    """By the path of the input's first linear."""

    def to_json(self) -> dict[str, Any]:
        stats = self.stats
        return {
            "source": stats.source, "fingerprint": stats.fingerprint,
            "tokens": stats.tokens, "context": stats.context,
            "systematic_dimensions": list(self.systematic_dimensions),
            "inputs": {path: vars(found) for path, found in self.inputs.items()},
        }  # fmt: skip


def summarize_stats(stats: Stats) -> StatsSummary:
    """Sum up statistics."""
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
