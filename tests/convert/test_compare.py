"""A comparison summed up: worst and median, the limit, JSON; and that both folders may be named in every way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from int8conv.convert import compare as compare_module
from int8conv.convert.compare import SourceComparison, compare
from int8conv.convert.converter import convert_checkpoint
from int8conv.convert.quality import TensorQuality, compare_tensors
from int8conv.errors import ArgumentError, NotFoundError, QualityError, SourceMismatchError
from int8conv.formats.hub.download import resolve
from int8conv.formats.int8.folder import open_converted

from ..checkpoints import write_checkpoint
from ..formats.damage import rejected

FOLDER = Path("out")


def compared(*figures: float | None) -> SourceComparison:
    """Tensors ``t0``, ``t1`` ... of these SQNRs."""
    tensors = tuple(
        TensorQuality(f"t{i}", figure, 0.5 + i, 0.25) for i, figure in enumerate(figures)
    )
    return SourceComparison(FOLDER, tensors, 7, {"norm": 3}, {"inv_freq": "computed"}, "nearest")


def test_the_worst_come_first_and_what_lost_nothing_last() -> None:
    found = compared(40.0, None, 12.5, 30.0)
    assert [q.name for q in found.worst_first] == ["t2", "t3", "t0", "t1"]
    assert [q.name for q in found.tensors] == ["t0", "t1", "t2", "t3"]
    assert (found.worst_sqnr_db, found.median_sqnr_db) == (12.5, 35.0)


@pytest.mark.parametrize("figures", [(), (None,), (None, None)])
def test_nothing_lost_has_no_figures(figures: tuple[None, ...]) -> None:
    found = compared(*figures)
    assert (found.worst_sqnr_db, found.median_sqnr_db) == (None, None)
    found.check(1000)


def test_every_tensor_is_held_to_the_limit() -> None:
    found = compared(40.0, 29.9, 30.0, None)
    found.check(29.9)
    with rejected(QualityError, str(FOLDER), "'t1'", "at least 30 dB", "1 of 4"):
        found.check(30)


def test_json() -> None:
    value = json.loads(json.dumps(compared(40.0, None, 12.5).to_json(12.6)))
    assert value == {
        "min_sqnr_db": 12.6, "worst_sqnr_db": 12.5, "median_sqnr_db": 40.0,
        "tensors": {
            "t0": {"sqnr_db": 40.0, "max_error": 0.5, "outlier_share": 0.25, "below": False},
            "t1": {"sqnr_db": None, "max_error": 1.5, "outlier_share": 0.25, "below": False},
            "t2": {"sqnr_db": 12.5, "max_error": 2.5, "outlier_share": 0.25, "below": True},
        },
        "same": 7, "rounded": {"norm": 3}, "left_out": {"inv_freq": "computed"}, "rounding": "nearest",
    }  # fmt: skip
    assert not compared(12.6).to_json(12.6)["tensors"]["t0"]["below"]


def test_folders_by_name_path_or_opened(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs_used: list[object] = []

    def recorded(*args: Any, jobs: int | None) -> Any:
        jobs_used.append(jobs)
        return compare_tensors(*args, jobs=jobs)

    monkeypatch.setattr(compare_module, "compare_tensors", recorded)
    out = tmp_path / "out"
    convert_checkpoint(source, out, outliers="none")
    opened = open_converted(out)
    expected = compare_tensors(opened, resolve(source))
    told: list[tuple[str, int, int]] = []
    for path, given in ((out, source), (str(out), str(source)), (opened, source)):
        found = compare(path, given, jobs=1, progress=lambda *news: told.append(news))
        assert found == SourceComparison(
            out,
            tuple(expected.linears),
            expected.same,
            expected.rounded,
            expected.left_out,
            "nearest",
        )
        assert len(found.tensors) == 14
        assert told[-1] == ("compare", told[-1][2], told[-1][2])
    compare(out, source)
    assert jobs_used == [1, 1, 1, None]
    for jobs in (0, -1):
        with pytest.raises(ArgumentError, match=f"^jobs: expected 1 or more, found {jobs}$"):
            compare(out, source, jobs=jobs)
    other = write_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(SourceMismatchError, match="differs from the source"):
        compare(out, other)
    for path, given in ((tmp_path / "absent", source), (out, tmp_path / "absent")):
        with pytest.raises(NotFoundError, match="absent"):
            compare(path, given)
