"""The dry run says what the conversion then does, and touches nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from int8conv.convert.converter import convert_checkpoint
from int8conv.convert.options import ConvertOptions
from int8conv.convert.preview import preview
from int8conv.errors import AlreadyQuantizedError, ArgumentError, TruncatedFileError
from int8conv.formats.int8.folder import open_converted


@pytest.mark.parametrize(
    "options",
    [
        ConvertOptions("none"),
        ConvertOptions("none", max_shard_bytes=20_000),
        ConvertOptions("none", keep=("down_proj", "layers.0.*v_proj")),
    ],
)
def test_it_is_what_then_happens(source: Path, tmp_path: Path, options: ConvertOptions) -> None:
    plan = preview(source, tmp_path / "out", options)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    report = convert_checkpoint(
        source, tmp_path / "out", outliers="none",
        max_shard_bytes=options.max_shard_bytes, keep=options.keep,
    )  # fmt: skip
    assert (plan.bytes_in, plan.bytes_out) == (report.bytes_in, report.bytes_out)
    assert len(plan.tensors) == report.tensors
    converted = open_converted(tmp_path / "out")
    assert {f"{path}.weight" for path in converted.linears} == {
        t.name for t in plan.tensors if t.becomes == "int8"
    }
    assert len(converted.checkpoint.headers) == plan.shards
    assert plan.disk_free > 0


def test_calibrated_columns_are_counted_at_their_most(source: Path, tmp_path: Path) -> None:
    most = preview(source, tmp_path / "out", ConvertOptions()).bytes_out
    assert most >= convert_checkpoint(source, tmp_path / "out").bytes_out
    assert most > preview(source, tmp_path / "out", ConvertOptions("none")).bytes_out


def test_the_output_may_lie_in_a_folder_to_be(source: Path, tmp_path: Path) -> None:
    assert preview(source, tmp_path / "a" / "b" / "out", ConvertOptions()).disk_free > 0


def test_it_refuses_what_a_conversion_refuses(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="keep"):
        preview(source, tmp_path / "out", ConvertOptions(keep=("nothing",)))
    convert_checkpoint(source, tmp_path / "int8", outliers="none")
    with pytest.raises(AlreadyQuantizedError):
        preview(tmp_path / "int8", tmp_path / "out", ConvertOptions())
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(TruncatedFileError):
        preview(source, tmp_path / "out", ConvertOptions())
