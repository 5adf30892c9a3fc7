"""Which input columns of a group stay in 16 bits, and from where the safety net takes an activation."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_FLOOR, Context
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..formats.names import OUTLIER_MULTIPLE

FACTOR: Final = 4.0
CAP_SHARE: Final = 0.01
CAP_COLUMNS: Final = 16


@dataclass(frozen=True)
class OutlierChoice:
    """The choice for one input."""

    columns: npt.NDArray[np.int32]
    """Ascending; empty for none."""
    threshold: float | None
    """Just above the largest magnitude that calibration saw outside the columns. None: not known."""

    def to_json(self) -> dict[str, Any]:
        return {"columns": self.columns.tolist(), "threshold": self.threshold}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> OutlierChoice:
        return cls(np.array(value["columns"], np.int32), value["threshold"])


NO_OUTLIERS: Final = OutlierChoice(np.empty(0, np.int32), None)


def choose_outliers(absmax: npt.NDArray[np.float32]) -> OutlierChoice:
    """Channels whose largest magnitude is at least 4 times the median channel's, the largest first, up to a cap.

    The rule is free of scale: LLM.int8()'s fixed 6.0 (arXiv:2208.07339, section 3.2) was made for normalised inputs, and at
    the FFN's second matrix it would keep nearly every column. The cap is the larger of 16 columns and 1 %, in whole
    multiples of 16; a started multiple is filled with the next largest channels, since kernels read 16 at a time.

    Args:
        absmax: largest magnitude of each channel over the calibration's tokens, ``[in]``.
    """
    in_features = len(absmax)
    wanted = int(np.count_nonzero(absmax >= FACTOR * np.median(absmax))) if absmax.any() else 0
    count = min(-(-wanted // OUTLIER_MULTIPLE) * OUTLIER_MULTIPLE, most_outliers(in_features))
    order = np.argsort(-absmax, kind="stable")
    rest = absmax[order[count:]]
    columns = np.sort(order[:count]).astype(np.int32)
    return OutlierChoice(columns, _just_above(float(rest.max())) if rest.any() else None)


def most_outliers(in_features: int) -> int:
    """The cap for an input of so many columns."""
    cap = max(CAP_COLUMNS, int(CAP_SHARE * in_features))
    return min(cap, in_features) // OUTLIER_MULTIPLE * OUTLIER_MULTIPLE


def _just_above(value: float) -> float:
    """The next number of three significant digits: sums in another order must not change the file."""
    digits = Context(prec=3, rounding=ROUND_FLOOR)
    above = digits.create_decimal_from_float(value)
    while float(above) <= value:
        above = above.next_plus(digits)
    return float(above)
