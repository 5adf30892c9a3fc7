"""Statistics are merged, and refused where they do not belong (see also test_calibrate and test_outliers)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from int8conv.convert.outliers.collect import merge, systematic_dimensions
from int8conv.errors import ArgumentError, StatsError
from int8conv.formats.int8.stats import add_exactly

from ...formats.int8.test_stats import make_stats


def test_maxima_and_sums() -> None:
    a, b = make_stats(1), make_stats(2, texts=(("c" * 32, 10),))
    merged = merge([("a", a), ("b", b)])
    found, first, second = (s.inputs["model.q"] for s in (merged, a, b))
    np.testing.assert_array_equal(found.absmax, np.maximum(first.absmax, second.absmax))
    np.testing.assert_array_equal(found.large, first.large + second.large)
    np.testing.assert_allclose(found.squares.sum(0), (first.squares + second.squares).sum(0))
    np.testing.assert_allclose(found.fourths.sum(0), (first.fourths + second.fourths).sum(0))
    np.testing.assert_array_equal(found.weight_error, first.weight_error)
    assert merged.texts == (*a.texts, ("c" * 32, 10))
    assert merged.tokens == 202


@pytest.mark.rule("S5")
@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "0" * 32},
        {"context": 64},
        {"normalised": ()},
        {"linears": {"model.q": ("model.q",), "model.down": ("model.down",)}},
    ],
)
def test_what_does_not_belong_together(change: dict[str, Any]) -> None:
    with pytest.raises(StatsError, match=f"{next(iter(change))} differs from a") as caught:
        merge([("a", make_stats()), ("b", make_stats(**change))])
    assert caught.value.file == "b"


@pytest.mark.rule("S5")
def test_other_weights() -> None:
    other = make_stats()
    down = other.inputs["model.down"]
    changed = replace(down, weight_error=down.weight_error * 2)
    with pytest.raises(StatsError, match=r"differs from a") as caught:
        merge(
            [
                ("a", make_stats()),
                ("b", replace(other, inputs=other.inputs | {"model.down": changed})),
            ]
        )
    assert caught.value.tensor == "model.down.weight_error"


def test_other_widths() -> None:
    with pytest.raises(StatsError, match=r"weight_error.: differs from a"):
        merge([("a", make_stats()), ("b", make_stats(channels=25))])


def test_one_alone() -> None:
    with pytest.raises(ArgumentError, match="two statistics files or more"):
        merge([("a", make_stats())])


@given(st.permutations(range(12)), st.integers(0, 2**32 - 1))
def test_sums_do_not_depend_on_their_order(order: list[int], seed: int) -> None:
    """Over twenty orders of magnitude, where float64 alone rounds."""
    rng = np.random.default_rng(seed)
    terms = (rng.random((12, 4)) * 10.0 ** rng.integers(-10, 10, (12, 4))).astype(np.float32)

    def total(parts: list[int]) -> npt.NDArray[np.float64]:
        result = np.zeros((2, 4))
        for part in parts:
            result = add_exactly(result, np.stack([terms[part].astype(float), np.zeros(4)]))
        return result

    whole = total(list(range(12)))
    np.testing.assert_array_equal(add_exactly(total(order[:5]), total(order[5:])), whole)
    for channel in range(4):
        assert whole[0, channel] == math.fsum(terms[:, channel].tolist())


def test_systematic_dimensions_where_norms_have_other_widths_too() -> None:
    alike = make_stats(normalised=("model.q",))
    both = make_stats(normalised=("model.q", "model.down"))
    np.testing.assert_array_equal(systematic_dimensions(both), systematic_dimensions(alike))
