"""What a conversion tells its caller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from .plan import Plan, QuantizeTask
from .stream import TaskResult

LEAST_SQNR_DB: Final = 30.0
"""A linear below is flagged: rounding Gaussian rows of a few thousand columns to int8 leaves 39 to 42 dB."""


@dataclass(frozen=True)
class LinearQuality:
    """How well a quantized linear stands for its source, measured on a sample of its rows (see ``sample``)."""

    sqnr_db: float | None
    """None where nothing was lost."""
    max_error: float
    """Largest difference between a weight and its dequantized code."""
    outlier_share: float
    """Of the linear's bytes, those of its outlier columns."""


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion did; sizes in bytes."""

    tensors: int
    """Source tensors read."""
    quantized: int
    """Of them, linears that became int8."""
    outlier_columns: int
    """Columns kept in 16 bits, over all inputs."""
    bytes_in: int
    """Of the source's tensors."""
    bytes_out: int
    """Of the shards."""
    seconds: float
    rounded: int
    """Values of an F32 source that rounding to 16 bits changed."""
    resumed: int = 0
    """Tensors that an earlier, unfinished attempt had done."""
    notes: tuple[str, ...] = ()
    """What the user should know."""

    quality: dict[str, LinearQuality] = field(default_factory=dict)
    """Of each quantized linear, by path."""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds by stage: ``open``, ``calibrate`` and ``flush`` as they pass, ``read``, ``quantize``, ``checksum``,
    ``write`` and ``verify`` (what an earlier attempt wrote) of all workers together."""

    @property
    def ratio(self) -> float:
        return self.bytes_out / max(self.bytes_in, 1)

    @property
    def flagged(self) -> list[tuple[str, float]]:
        """Linears below ``LEAST_SQNR_DB``, the worst first."""
        found = [(path, q.sqnr_db) for path, q in self.quality.items() if q.sqnr_db is not None]
        return sorted((x for x in found if x[1] < LEAST_SQNR_DB), key=lambda x: x[1])


def measured(plan: Plan, results: Sequence[TaskResult]) -> dict[str, LinearQuality]:
    """The quality of each quantized linear."""
    qualities = {}
    for task, result in zip(plan.tasks, results, strict=True):
        if isinstance(task, QuantizeTask):
            out, in_features = task.source.shape
            slices = 2 * out * len(task.columns)
            share = slices / max(out * in_features + 4 * out + slices, 1)
            qualities[task.path] = LinearQuality(result.sqnr_db, result.max_error, share)
    return qualities
