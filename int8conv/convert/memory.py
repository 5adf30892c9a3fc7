"""How many workers, and which block size, a memory limit allows."""

from __future__ import annotations

from typing import Final

from ..errors import ArgumentError
from .plan import Plan
from .stream import Workers

DEFAULT_MAX_MEMORY: Final = 256_000_000

_PROCESS_BYTES: Final = 64_000_000
"""Python, numpy and the plan (a megabyte for a thousand tensors)."""
_BLOCK_ELEMENTS: Final = 1 << 19
"""2 MiB in float32: larger blocks would not fit a core's cache, with smaller ones threads would wait for each other more often."""
_BYTES_PER_ELEMENT: Final = 20
"""Largest size of a worker's buffers per element: FP8 code, its value, scratch, float32, int8 code and outlier columns."""
_PANEL_BYTES: Final = 20_000_000
"""Per worker, for transposed matrices and read-ahead."""


def plan_workers(plan: Plan, jobs: int, max_memory: int) -> Workers:
    """Fit workers into a limit, first by using fewer of them, then by smaller blocks.

    Args:
        plan: its widest row is the smallest possible block.
        jobs: largest number of workers.
        max_memory: bytes of the whole process while it streams (calibration also holds one block of the model).

    Raises:
        ArgumentError: one worker with one row does not fit.
    """
    widest = max((task.source.shape[-1] for task in plan.tasks if task.source.shape), default=1)
    left = max_memory - _PROCESS_BYTES - _PANEL_BYTES
    if left < widest * _BYTES_PER_ELEMENT:
        least = _PROCESS_BYTES + _PANEL_BYTES + widest * _BYTES_PER_ELEMENT
        raise ArgumentError("max_memory is too small for one row", found=f"{max_memory} bytes",
                            expected=f"{least} bytes or more")  # fmt: skip
    elements = max(widest, min(_BLOCK_ELEMENTS, left // _BYTES_PER_ELEMENT))
    each = elements * _BYTES_PER_ELEMENT + _PANEL_BYTES
    return Workers(max(1, min(jobs, (max_memory - _PROCESS_BYTES) // each)), elements)
