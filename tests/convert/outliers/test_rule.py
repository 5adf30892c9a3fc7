"""The rule that chooses outlier columns, and the outlier fallback's threshold."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from int8conv.convert.outliers.collect import systematic_dimensions
from int8conv.convert.outliers.rule import Choosing, OutlierChoice, choose_all, kurtosis
from int8conv.convert.outliers.rule import choose_outliers as choose
from int8conv.formats.int8.outlier_cap import most_outliers
from int8conv.formats.int8.stats import InputStats, Stats

TOKENS = 1000


def seen(absmax: npt.NDArray[np.float32], tails: float = 3.0, large: Any = None) -> InputStats:
    """Statistics of channels of unit variance, with a given kurtosis."""
    count = len(absmax)
    return InputStats(
        absmax=absmax,
        large=np.zeros(count, np.int64) if large is None else np.asarray(large, np.int64),
        squares=pair(np.full(count, float(TOKENS))),
        fourths=pair(np.full(count, tails * TOKENS)),
        weight_error=np.ones(count, np.float32),
    )


def pair(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.stack([sums, np.zeros_like(sums)])


ABSMAX = Choosing("absmax")


def choose_outliers(absmax: npt.NDArray[np.float32], **choosing: Any) -> OutlierChoice:
    return choose(seen(absmax), TOKENS, replace(ABSMAX, **choosing))


def channels(count: int, large: dict[int, float], rest: float = 1.0) -> npt.NDArray[np.float32]:
    absmax = np.full(count, rest, np.float32)
    for channel, value in large.items():
        absmax[channel] = value
    return absmax


def test_sixteen_columns_at_least() -> None:
    """Kernels read 16 at a time: fewer cost as much."""
    choice = choose_outliers(channels(64, {}))
    assert choice.columns.tolist() == list(range(16))
    assert choice.columns.dtype == np.int32
    assert choice.threshold == 1.01


@pytest.mark.parametrize(("value", "kept"), [(3.99, 16), (4.0, 32), (400.0, 32)])
def test_an_outlier_is_four_times_the_median(value: float, kept: int) -> None:
    choice = choose_outliers(channels(3200, dict.fromkeys(range(7, 24), value)))
    assert len(choice.columns) == kept


def test_the_rule_is_free_of_scale() -> None:
    absmax = np.abs(np.random.default_rng(0).standard_cauchy(512)).astype(np.float32)
    columns = choose_outliers(absmax).columns
    assert len(columns) == 16
    for factor in (2.0**-20, 2.0**20):
        scaled = choose_outliers(absmax * np.float32(factor)).columns
        np.testing.assert_array_equal(scaled, columns)


def test_a_started_multiple_is_filled_with_the_next_largest() -> None:
    absmax = channels(64, {3: 50.0, 40: 9.0} | dict.fromkeys(range(10, 24), 2.0))
    choice = choose_outliers(absmax)
    assert choice.columns.tolist() == [3, *range(10, 24), 40]
    assert choice.threshold == 1.01


def test_columns_ascend_whatever_their_magnitudes() -> None:
    choice = choose_outliers(channels(64, {60: 10.0, 5: 30.0, 30: 20.0}))
    assert {5, 30, 60} <= set(choice.columns.tolist())
    assert (np.diff(choice.columns) > 0).all()


@pytest.mark.parametrize(
    ("in_features", "outliers", "kept"),
    [
        (64, 17, 16),  # the cap: 16 columns
        (1600, 40, 16),  # 1 % is 16
        (3100, 40, 16),  # 1 % is 31: one whole multiple
        (3200, 17, 32),
        (3200, 16, 16),
        (11008, 1, 16),
        (11008, 100, 96),  # 1 % is 110: six whole multiples
        (11008, 2000, 96),
        (16, 3, 16),
        (17, 3, 16),
    ],
)
def test_the_cap(in_features: int, outliers: int, kept: int) -> None:
    absmax = channels(in_features, {channel: 100.0 + channel for channel in range(outliers)})
    choice = choose_outliers(absmax)
    assert len(choice.columns) == kept
    largest = np.argsort(-absmax, kind="stable")[:kept]
    assert set(choice.columns.tolist()) == set(largest.tolist())


@pytest.mark.parametrize("in_features", [1, 2, 15])
def test_fewer_than_sixteen_columns_are_never_split(in_features: int) -> None:
    choice = choose_outliers(channels(in_features, {0: 1000.0}))
    assert choice.columns.tolist() == []
    assert choice.threshold == 1010.0


def test_all_of_the_columns_may_be_kept() -> None:
    """Then nothing is left for the outlier fallback."""
    choice = choose_outliers(channels(16, {3: 8.0}))
    assert choice.columns.tolist() == list(range(16))
    assert choice.threshold is None


@pytest.mark.parametrize("in_features", [8, 16, 200])
def test_an_input_that_is_always_zero(in_features: int) -> None:
    choice = choose_outliers(np.zeros(in_features, np.float32))
    assert choice.columns.tolist() == []
    assert choice.threshold is None


def test_a_median_of_zero_keeps_the_largest() -> None:
    """Most channels are dead, as behind a ReLU: every live one is far above the median."""
    choice = choose_outliers(channels(64, {9: 1.0, 50: 0.25}, rest=0.0))
    assert {9, 50} <= set(choice.columns.tolist())
    assert len(choice.columns) == 16
    assert choice.threshold is None


def test_ties_go_to_the_first_channels() -> None:
    absmax = channels(64, dict.fromkeys(range(20, 44), 8.0))
    assert choose_outliers(absmax).columns.tolist() == list(range(20, 36))
    np.testing.assert_array_equal(
        choose_outliers(absmax.copy()).columns, choose_outliers(absmax).columns
    )


def test_the_threshold_is_that_of_what_is_left() -> None:
    absmax = channels(64, {channel: 100.0 + channel for channel in range(20)})
    choice = choose_outliers(absmax)
    assert choice.columns.tolist() == list(range(4, 20))
    assert choice.threshold == 104.0  # above 103, the largest that the cap leaves


positive = st.floats(float(np.float32(1e-30)), float(np.float32(1e30)), width=32)


@given(positive)
def test_the_threshold_is_just_above(value: float) -> None:
    threshold = choose_outliers(np.full(4, value, np.float32)).threshold
    assert threshold is not None
    assert value < threshold <= value * 1.0100001
    assert len(Decimal(repr(threshold)).normalize().as_tuple().digits) <= 3


@pytest.mark.parametrize("value", [0.125, 0.25, 0.5, 1.0, 2.25, 5.5, 9.99, 10.0, 99.5, 128.0, 1e6])
def test_the_threshold_is_above_a_number_of_three_digits_too(value: float) -> None:
    threshold = choose_outliers(np.full(4, value, np.float32)).threshold
    assert threshold is not None
    assert threshold > float(np.float32(value))


@given(st.lists(st.floats(0, 1000, width=32), min_size=1, max_size=80))
def test_any_channels(values: list[float]) -> None:
    absmax = np.array(values, np.float32)
    choice = choose_outliers(absmax)
    columns = choice.columns.tolist()
    assert len(columns) % 16 == 0
    assert len(columns) <= 16
    assert columns == sorted(set(columns))
    rest = np.delete(absmax, columns)
    if columns and len(rest):
        assert absmax[columns].min() >= rest.max()
    if rest.any():
        assert choice.threshold is not None
        assert float(rest.max()) < choice.threshold
    else:
        assert choice.threshold is None


@pytest.mark.parametrize(("tails", "threshold"), [(3.0, 1.01), (16.0, 1.01), (16.1, 0.0)])
def test_heavy_tails_are_multiplied_in_16_bits(tails: float, threshold: float) -> None:
    absmax = channels(64, {5: 50.0})
    assert choose(seen(absmax, tails), TOKENS, ABSMAX).threshold == threshold
    assert (
        choose(seen(absmax, tails), TOKENS, replace(ABSMAX, heavy_tails="8bit")).threshold == 1.01
    )


def test_columns_that_are_kept_have_no_tails() -> None:
    found = seen(channels(64, {5: 50.0}))
    found.fourths[0, 5] = 1e6 * TOKENS
    everything = np.arange(64)
    assert kurtosis(found, TOKENS, everything) > 1e4
    assert kurtosis(found, TOKENS, np.delete(everything, 5)) == pytest.approx(3)
    assert choose(found, TOKENS, ABSMAX).threshold == 1.01


def test_kurtosis_is_that_of_the_values() -> None:
    values = np.random.default_rng(0).standard_t(5, (TOKENS, 64))
    found = replace(
        seen(np.ones(64, np.float32)),
        squares=pair((values**2).sum(0)),
        fourths=pair((values**4).sum(0)),
    )
    expected = (values**4).mean() / (values**2).mean() ** 2
    assert kurtosis(found, TOKENS, np.arange(64)) == pytest.approx(expected)


def test_none_kept_leaves_the_fallback_where_it_is() -> None:
    """The fallback alone has to handle what the columns would have held."""
    absmax = channels(64, {3: 50.0, 40: 90.0})
    alone, kept = choose_outliers(absmax, max_fraction=0.0), choose_outliers(absmax)
    assert alone.columns.tolist() == []
    assert alone.threshold == kept.threshold == 1.01


@pytest.mark.parametrize(
    ("in_features", "share", "most"),
    [
        (4096, 0.01, 32),
        (4096, 0.1, 400),
        (4096, 0.0, 0),
        (256, 0.01, 16),
        (256, 1.0, 256),
        (8, 1.0, 0),
    ],
)
def test_the_share(in_features: int, share: float, most: int) -> None:
    assert most_outliers(in_features, share) == most


def test_by_expected_error() -> None:
    absmax = np.linspace(1, 2, 64, dtype=np.float32)
    error = np.ones(64, np.float32)
    error[:16] = 10
    found = replace(seen(absmax), weight_error=error)
    assert choose(found, TOKENS).columns.tolist() == list(range(16))  # by default
    assert choose(found, TOKENS, ABSMAX).columns.tolist() == list(range(48, 64))
    squares = np.ones(64)
    squares[20:36] = 101.0  # more than ten times the error of the weight makes up for
    steady = replace(found, squares=pair(squares))
    assert choose(steady, TOKENS).columns.tolist() == list(range(20, 36))
    split = np.stack(
        [np.full(64, -1.0), squares + 1]
    )  # the two rows together are a sum: the first alone may be negative
    with np.errstate(invalid="raise"):
        found = replace(found, squares=split)
        assert choose(found, TOKENS).columns.tolist() == list(range(20, 36))


def layers(hits: dict[int, tuple[int, int]], count: int = 8) -> Stats:
    """Inputs behind a norm; by channel: in how many of them it passes 6.0, at how many positions."""
    inputs = {}
    for layer in range(count):
        large = np.zeros(64, np.int64)
        for channel, (inputs_hit, positions) in hits.items():
            large[channel] = positions if layer < inputs_hit else 0
        inputs[f"norm{layer}"] = seen(np.ones(64, np.float32), large=large)
    inputs["other"] = seen(np.ones(64, np.float32), large=np.full(64, TOKENS))
    linears = {path: (path,) for path in inputs}
    return Stats("", "", ((None, TOKENS),), 10, linears, tuple(inputs)[:-1], inputs)


def test_the_papers_rule() -> None:
    """A quarter of the layers, 6 % of the positions; nothing where no norm is in front."""
    stats = layers({1: (2, 60), 2: (1, 1000), 3: (8, 59), 4: (8, 600)})
    assert systematic_dimensions(stats).tolist() == [1, 4]
    choices = choose_all(stats, Choosing("paper"))
    assert {1, 4} <= set(choices["norm0"].columns.tolist())
    assert len(choices["norm0"].columns) == 16
    assert choices["other"].columns.tolist() == []


def test_no_systematic_dimension() -> None:
    assert systematic_dimensions(layers({})).tolist() == []
    assert systematic_dimensions(replace(layers({}), normalised=())).tolist() == []


@pytest.mark.parametrize("scale", [1e-150, 1e-90, 1.0, 1e90, 1e150])
def test_kurtosis_does_not_depend_on_the_scale(scale: float) -> None:
    """Nor on whether the square of a sum is a float."""
    zeros = np.zeros(2)
    found = InputStats(
        np.ones(2, np.float32), np.zeros(2, np.int64), np.stack([np.array([2.0, 4.0]) * scale, zeros]),
        np.stack([np.array([3.0, 6.0]) * scale, zeros]) * scale, np.ones(2, np.float32),
    )  # fmt: skip
    assert kurtosis(found, 10, np.arange(2)) == pytest.approx(9 * 10 * 2 / 36)
