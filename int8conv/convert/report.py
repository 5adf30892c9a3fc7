"""The report of a conversion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from .plan import Plan, QuantizeTask
from .stream import TaskResult

LEAST_SQNR_DB: Final = 30.0
"""Linears below this are flagged: rounding Gaussian rows of a few thousand columns to int8 gives 39 to 42 dB."""


@dataclass(frozen=True)
class LinearQuality:
    """How faithfully a quantized linear represents its source, measured on a sample of its rows (see ``sample``)."""

    sqnr_db: float | None
    """None if nothing was lost."""
    max_error: float
    """Largest difference between a weight and its dequantized value."""
    outlier_share: float
    """Fraction of the linear's bytes taken by outlier columns."""


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion did; sizes in bytes."""

    tensors: int
    """Source tensors read."""
    quantized: int
    """How many of them became int8."""
    outlier_columns: int
    """Columns kept in 16 bits, summed over all inputs."""
    bytes_in: int
    """Size of the source's tensors."""
    bytes_out: int
    """Size of the shards."""
    seconds: float
    rounded: int
    """Number of values of an F32 source that rounding to 16 bits changed."""
    resumed: int = 0
    """Number of tensors already done by an earlier, unfinished attempt."""
    notes: tuple[str, ...] = ()
    """Notes for the user."""

    quality: dict[str, LinearQuality] = field(default_factory=dict)
    """Quality of each quantized linear, by path."""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds per stage: wall-clock time of ``open``, ``calibrate`` and ``flush``; summed over all workers for ``read``,
    ``quantize``, ``checksum``, ``write`` and ``verify`` (what an earlier attempt wrote)."""

    @property
    def ratio(self) -> float:
        return self.bytes_out / max(self.bytes_in, 1)

    @property
    def flagged(self) -> list[tuple[str, float]]:
        """Linears below ``LEAST_SQNR_DB``, worst first."""
        found = [(path, q.sqnr_db) for path, q in self.quality.items() if q.sqnr_db is not None]
        return sorted((x for x in found if x[1] < LEAST_SQNR_DB), key=lambda x: x[1])


def measured(plan: Plan, results: Sequence[TaskResult]) -> dict[str, LinearQuality]:
    """The quality of each quantized linear."""
    qualities = {}
    for task, result in zip(plan.tasks, results, strict=True):
        if isinstance(task, QuantizeTask):
            out, in_features = task.source.shape
            slices = 2 * out * len(task.columns)
            fraction = slices / max(out * in_features + 4 * out + slices, 1)
            qualities[task.path] = LinearQuality(result.sqnr_db, result.max_error, fraction)
    return qualities
