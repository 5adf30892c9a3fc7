"""The largest number of an input's columns that stay in 16 bits: the converter's default, which footprints assume."""

from __future__ import annotations

from typing import Final

from .names import OUTLIER_MULTIPLE

CAP_SHARE: Final = 0.01
CAP_COLUMNS: Final = 16


def most_outliers(in_features: int, share: float = CAP_SHARE) -> int:
    """The cap for an input of ``in_features`` columns: the fraction ``share`` of them, or 16 if that is more; 0 if ``share`` is 0."""
    cap = max(CAP_COLUMNS, int(share * in_features)) if share else 0
    return min(cap, in_features) // OUTLIER_MULTIPLE * OUTLIER_MULTIPLE
