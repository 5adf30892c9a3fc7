"""What a report says of linears: their error, the share of their outlier columns, which of them are flagged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from int8conv.convert.plan import KeepTask, Plan, QuantizeTask
from int8conv.convert.report import ConvertReport, LinearQuality, measured
from int8conv.convert.stream import TaskResult
from int8conv.formats.safetensors.storage import LocalFile
from int8conv.formats.source.checkpoint import StoredTensor
from int8conv.formats.source.matrix import Matrix


def matrix(name: str, out: int, in_features: int) -> Matrix:
    return Matrix(StoredTensor(name, "F16", (out, in_features), LocalFile(Path("x")), 0, 2 * out * in_features))  # fmt: skip


def test_quality_of_the_linears_and_of_no_other_tensor() -> None:
    """A share of the linear's own bytes: codes, a scale of four bytes per row, and its columns in 16 bits."""
    columns = np.arange(16, dtype=np.int32)
    norm = StoredTensor("norm.weight", "F16", (30,), LocalFile(Path("x")), 0, 60)
    tasks = (
        QuantizeTask("up", matrix("up.weight", 30, 100), columns, "F16", "ffn"),
        KeepTask("norm.weight", norm, "F16", "norm"),
        QuantizeTask("down", matrix("down.weight", 100, 30), columns[:0], "F16", "ffn"),
    )
    results = [
        TaskResult("", {}, sqnr_db=41.5, max_error=0.25),
        TaskResult("", {}),
        TaskResult("", {}, sqnr_db=None),
    ]
    plan = Plan(tasks, (), (), {})
    assert measured(plan, results) == {
        "up": LinearQuality(41.5, 0.25, 960 / (3000 + 120 + 960)),
        "down": LinearQuality(None, 0.0, 0.0),
    }
    with pytest.raises(ValueError, match="shorter"):
        measured(plan, results[:2])


def report(bytes_in: int = 100, **decibels: float | None) -> ConvertReport:
    quality = {path: LinearQuality(value, 0.0, 0.0) for path, value in decibels.items()}
    return ConvertReport(9, 7, 16, bytes_in, 55, 1.0, 0, quality=quality)


def test_linears_below_30_decibels_are_flagged_worst_first() -> None:
    found = report(a=29.999, b=30.0, c=12.0, d=None, e=41.0, f=-3.0).flagged
    assert found == [("f", -3.0), ("c", 12.0), ("a", 29.999)]
    assert report(a=30.0, b=None).flagged == []


def test_ratio_is_of_bytes_out() -> None:
    assert report(100).ratio == 0.55
    assert report(0).ratio == 55  # nothing to divide by
