"""The largest number of an input's columns that stay in 16 bits: the converter's default, which footprints assume."""

from __future__ import annotations

from typing import Final

from .names import OUTLIER_MULTIPLE

CAP_FRACTION: Final = 0.01
CAP_COLUMNS: Final = 16


def most_outliers(in_features: int, fraction: float = CAP_FRACTION) -> int:
    """The cap for an input of ``in_features`` columns: the fraction ``fraction`` of them, or 16 if that is more; 0 if ``fraction`` is 0."""
    cap = max(CAP_COLUMNS, int(fraction * in_features)) if fraction else 0
    return min(cap, in_features) // OUTLIER_MULTIPLE * OUTLIER_MULTIPLE
