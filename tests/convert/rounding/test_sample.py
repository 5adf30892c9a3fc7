"""The sampled quality against the whole matrix."""

from __future__ import annotations

import math

import numpy as np
import pytest

from int8conv.convert.rounding import sample as module
from int8conv.convert.rounding.quantize import RowQuantizer
from int8conv.convert.rounding.sample import RowSample

NO_COLUMNS = np.empty(0, np.int32)


def measure(weight: np.ndarray, columns: np.ndarray, rows_per_block: int) -> RowSample:
    sample = RowSample(*weight.shape)
    quantizer = RowQuantizer("F32", columns, sample=sample)
    for first in range(0, len(weight), rows_per_block):
        bits = weight[first : first + rows_per_block].copy().view(np.uint32)
        block = quantizer.quantize(bits, first)
        sample.add_exact(block.outliers.view(np.float32), first)
    return sample


def exactly(weight: np.ndarray, columns: np.ndarray) -> tuple[float, float]:
    """SQNR and largest error in float64."""
    inner = weight.astype(np.float64)
    inner[:, columns] = 0
    scale = np.abs(inner).max(axis=1, keepdims=True) / 127
    error = inner - np.rint(inner / scale) * scale
    signal = np.square(weight.astype(np.float64)).sum()
    return 10 * math.log10(signal / np.square(error).sum()), float(np.abs(error).max())


@pytest.mark.parametrize("columns", [NO_COLUMNS, np.array([1, 30], np.int32)], ids=["none", "two"])
@pytest.mark.parametrize("rows_per_block", [1, 7, 100])
def test_a_small_matrix_is_measured_whole(columns: np.ndarray, rows_per_block: int) -> None:
    weight = np.random.default_rng(0).standard_normal((61, 40)).astype(np.float32)
    weight[:, 30] *= 50
    sample = measure(weight, columns, rows_per_block)
    sqnr, largest = exactly(weight, columns)
    assert sample.step == 1
    assert sample.sqnr_db == pytest.approx(sqnr, abs=1e-3)
    assert sample.max_error == pytest.approx(largest, rel=1e-4)


def test_a_large_one_by_rows_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ELEMENTS", 500)
    weight = np.random.default_rng(0).standard_normal((600, 20)).astype(np.float32)
    weight[::24] *= 3  # the sampled rows are not like the others
    samples = [measure(weight, NO_COLUMNS, rows) for rows in (1, 5, 24, 31, 600)]
    assert samples[0].step == 24
    sqnr, largest = exactly(weight[::24], NO_COLUMNS)
    for sample in samples:
        assert sample.sqnr_db == pytest.approx(sqnr, abs=1e-3)
        assert sample.max_error == pytest.approx(largest, rel=1e-4)


def test_nothing_lost() -> None:
    assert measure(np.zeros((4, 8), np.float32), NO_COLUMNS, 2).sqnr_db is None
    assert measure(np.array([[127.0, -3.0, 0.0]], np.float32), NO_COLUMNS, 1).sqnr_db is None
