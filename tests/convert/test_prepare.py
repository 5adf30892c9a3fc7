"""What a conversion refuses before any work, and what makes an earlier attempt another one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from int8conv.convert.memory import DEFAULT_MAX_MEMORY
from int8conv.convert.options import ConvertOptions
from int8conv.convert.prepare import Prepared, Resources, prepare
from int8conv.errors import ArgumentError, OutputExistsError, OutputOverlapError

from ..checkpoints import edit_config

OPTIONS = ConvertOptions(outliers="none")
RESOURCES = Resources(None, DEFAULT_MAX_MEMORY, "cpu")


def prepared(source: Path, out: Path | None = None, options: ConvertOptions = OPTIONS,
             resources: Resources = RESOURCES, **changes: Any) -> Prepared:  # fmt: skip
    values: dict[str, Any] = {"stats": None, "stream": False, "force": False} | changes
    return prepare(source, out or source.parent / "out", options, resources, **values)


def test_nothing_is_written(source: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    found = prepared(source)
    assert found.statistics is None
    assert found.opened.architecture is not None
    assert {path: path.stat().st_mtime_ns for path in source.rglob("*")} == before
    assert [path.name for path in source.parent.iterdir()] == [source.name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stats": "absent"}, "absent"),
        ({"resources": replace(RESOURCES, jobs=0)}, "jobs"),
        ({"resources": replace(RESOURCES, device="nowhere")}, "nowhere"),
        ({"stream": True}, "stream needs a source on the hub"),
    ],
)
def test_options_that_cannot_be(source: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ArgumentError, FileNotFoundError), match=message):
        prepared(source, **changes)


def test_where_the_output_may_not_go(source: Path) -> None:
    with pytest.raises(OutputOverlapError):
        prepared(source, source)
    (source.parent / "out").mkdir()
    (source.parent / "out" / "file").touch()
    with pytest.raises(OutputExistsError):
        prepared(source)
    with pytest.raises(OutputExistsError):  # it is no converted folder
        prepared(source, force=True)


def test_the_fingerprint_is_of_all_that_decides_the_bytes(source: Path) -> None:
    first = prepared(source).fingerprint
    assert prepared(source, source.parent / "elsewhere").fingerprint == first
    assert prepared(source, resources=Resources(1, 1 << 30, "cpu")).fingerprint == first
    assert prepared(source, options=replace(OPTIONS, dtype="bfloat16")).fingerprint != first
    edit_config(source, rms_norm_eps=1e-5)
    changed = prepared(source).fingerprint
    assert changed != first
    (source / "tokenizer.json").write_text("{}")
    assert prepared(source).fingerprint != changed
