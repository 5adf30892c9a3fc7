"""The cap on outlier columns: a share of the input, at least 16, in whole groups of 16."""

from __future__ import annotations

import pytest

from int8conv.formats.int8.outlier_cap import most_outliers


@pytest.mark.parametrize(
    ("in_features", "share", "expected"),
    [
        (256, 0.01, 16),
        (1599, 0.01, 16),  # 15.99 columns: the floor of 16 counts
        (3199, 0.01, 16),  # 31 columns are one group of 16
        (3200, 0.01, 32),
        (11008, 0.01, 96),
        (4096, 0.1, 400),
        (4096, 0.0, 0),
        (20, 0.01, 16),
        (15, 0.01, 0),  # less than a group of 16
        (16, 1.0, 16),
    ],
)
def test_the_cap(in_features: int, share: float, expected: int) -> None:
    assert most_outliers(in_features, share) == expected


def test_the_default_is_one_per_cent() -> None:
    assert [most_outliers(n) for n in (4096, 8192)] == [32, 80]


def share(*linears: tuple[int, int]) -> float:
    """Of the bytes of linears ``(in, out)``, those of their outlier columns."""
    slices = sum(2 * most_outliers(width) * rows for width, rows in linears)
    return slices / (slices + sum((width + 4) * rows for width, rows in linears))


def test_columns_take_at_most_three_per_cent_from_a_width_of_1024_on() -> None:
    """16 columns, the fewest that there can be, are 3.02 % of a matrix of exactly that width, but less of any model: others are wider."""
    assert all(share((width, 1)) <= 0.03 for width in range(1031, 20000))
    assert share((1024, 1)) == pytest.approx(0.0302, abs=1e-4)
    ffn_four_wide = share((1024, 4 * 1024), (1024, 4096), (4096, 1024))
    qwen3_600m = share((1024, 4096), (2048, 1024), (1024, 6144), (3072, 1024))
    assert max(ffn_four_wide, qwen3_600m) <= 0.027
