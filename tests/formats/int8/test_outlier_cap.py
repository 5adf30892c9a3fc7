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
