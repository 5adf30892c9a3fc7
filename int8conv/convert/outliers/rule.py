"""Which input columns of a group stay in 16 bits, and the threshold of the outlier fallback: all rules.

The measurements behind the defaults are in docs/fidelity.md.

- ``error`` (default): as many channels as the cap allows, max(16, 1 %), those with the largest expected error: RMS of the
  activations x error of the weight's column. Kernels read 16 columns at a time. Scale-invariant.
- ``absmax``: channels whose largest magnitude is at least 4 times the median channel's, largest first; at least 16.
- ``paper``: the systematic dimensions of LLM.int8() (arXiv:2208.07339, section 4.1) at inputs that come from a norm; none elsewhere.

The paper's criterion is 6.0 for every input. It was designed for normalised inputs: at the second matrix of a gated FFN it
would keep nearly every column.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_FLOOR, Context
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from ...formats.int8.names import OUTLIER_MULTIPLE
from ...formats.int8.outlier_cap import CAP_COLUMNS, CAP_FRACTION, most_outliers
from ...formats.int8.stats import InputStats, Stats
from .collect import systematic_dimensions

Rule = Literal["absmax", "error", "paper"]
RULES: Final[tuple[Rule, ...]] = ("error", "absmax", "paper")
DEFAULT_RULE: Final[Rule] = "error"
HeavyTails = Literal["16bit", "8bit"]
HEAVY_TAILS: Final[tuple[HeavyTails, ...]] = ("16bit", "8bit")

FACTOR: Final = 4.0
HEAVY_KURTOSIS: Final = 16.0
"""Kurtosis outside the columns: 3 for a normal distribution, 3 to 9 after a norm, 40 and more for the second input of gated FFNs."""


@dataclass(frozen=True)
class OutlierChoice:
    """The choice for one input."""

    columns: npt.NDArray[np.int32]
    """Ascending; empty if there are none."""
    threshold: float | None
    """Just above the largest magnitude that calibration saw outside the columns; 0.0: all activations of this input are
    multiplied in 16 bits; None: unknown."""

    def to_json(self) -> dict[str, Any]:
        return {"columns": self.columns.tolist(), "threshold": self.threshold}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> OutlierChoice:
        return cls(np.array(value["columns"], np.int32), value["threshold"])


NO_OUTLIERS: Final = OutlierChoice(np.empty(0, np.int32), None)


@dataclass(frozen=True)
class Choosing:
    """The settings of the choice."""

    rule: Rule = DEFAULT_RULE
    max_fraction: float = CAP_FRACTION
    """Largest fraction of an input's columns to keep in 16 bits, or 16 columns if that is more; 0: none, only the fallback."""
    heavy_tails: HeavyTails = "16bit"
    """How to treat an input whose values are heavy-tailed outside its columns. There a single value sets the scale of nearly
    every token, and a useful fallback would be active in nearly every block: multiplying everything in 16 bits costs less."""

    def describe(self) -> str:
        """The rule in words, for the manifest."""
        what = {"absmax": f"absmax >= {FACTOR:g} * median", "error": "RMS * weight error",
                "paper": "systematic dimensions"}  # fmt: skip
        most = (
            f"at most max({CAP_COLUMNS}, {self.max_fraction:.3g})"
            if self.max_fraction
            else "at most 0"
        )
        return f"{what[self.rule]}, {most}, heavy tails in {self.heavy_tails}"


def choose_all(stats: Stats, choosing: Choosing) -> dict[str, OutlierChoice]:
    """The choice for every input of a checkpoint."""
    dimensions = systematic_dimensions(stats) if choosing.rule == "paper" else None
    normalised = set(stats.normalised)
    return {
        path: choose_outliers(found, stats.tokens, choosing, dimensions if path in normalised else None)
        for path, found in stats.inputs.items()
    }  # fmt: skip


def choose_outliers(
    found: InputStats,
    tokens: int,
    choosing: Choosing = Choosing(),
    dimensions: npt.NDArray[np.int64] | None = None,
) -> OutlierChoice:
    """The choice for one input.

    Args:
        found: its statistics.
        tokens: the number of positions they cover.
        choosing: the rule.
        dimensions: the checkpoint's systematic dimensions, for the rule ``paper``; None if they do not apply to this input.
    """
    in_features = len(found.absmax)
    if not found.absmax.any():
        return NO_OUTLIERS
    order, wanted = _ranked(found, choosing.rule, dimensions)
    if wanted:
        wanted = -(-wanted // OUTLIER_MULTIPLE) * OUTLIER_MULTIPLE
    kept = min(wanted, most_outliers(in_features, choosing.max_fraction))
    # columns that the default rule would keep are not ordinary activations, whether kept or not
    ordinary = order[min(wanted, most_outliers(in_features)) :]
    columns = np.sort(order[:kept]).astype(np.int32)
    return OutlierChoice(columns, _threshold(found, tokens, ordinary, choosing))


def _ranked(
    found: InputStats, rule: Rule, dimensions: npt.NDArray[np.int64] | None
) -> tuple[npt.NDArray[np.intp], int]:
    """Channels, most useful first, and how many of them the rule requests."""
    absmax = found.absmax
    if rule == "paper":
        score = absmax.astype(np.float64)
        chosen = np.empty(0, np.int64) if dimensions is None else dimensions
        score[chosen] += absmax.max()
        return np.argsort(-score, kind="stable"), len(chosen)
    if rule == "error":
        error = np.sqrt(found.squares.sum(0)) * found.weight_error
        return np.argsort(-error, kind="stable"), len(absmax)
    large = int(np.count_nonzero(absmax >= FACTOR * np.median(absmax)))
    return np.argsort(-absmax, kind="stable"), max(large, OUTLIER_MULTIPLE)


def _threshold(
    found: InputStats, tokens: int, ordinary: npt.NDArray[np.intp], choosing: Choosing
) -> float | None:
    largest = float(found.absmax[ordinary].max(initial=0))
    if not largest:
        return None
    if choosing.heavy_tails == "16bit" and kurtosis(found, tokens, ordinary) > HEAVY_KURTOSIS:
        return 0.0
    return _just_above(largest)


def kurtosis(found: InputStats, tokens: int, channels: npt.NDArray[np.intp]) -> float:
    """Kurtosis of some channels: mean fourth power over squared mean square."""
    squares, fourths = (
        float(found.squares[0, channels].sum()),
        float(found.fourths[0, channels].sum()),
    )
    # dividing by the square could give 0 or infinity where neither sum is
    return fourths / squares / squares * tokens * len(channels) if squares else 0.0


def _just_above(value: float) -> float:
    """The next number with three significant digits: another order of summation must not change the file."""
    digits = Context(prec=3, rounding=ROUND_FLOOR)
    above = digits.create_decimal_from_float(value)
    while float(above) <= value:
        above = above.next_plus(digits)
    return float(above)
