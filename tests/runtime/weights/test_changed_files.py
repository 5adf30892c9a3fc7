"""Files that change under a loaded model: kernels never read where a changed index says, and what can be noticed is said."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import int8conv
from int8conv.errors import FileChangedError, OutlierIndexError
from int8conv.formats.int8.folder import ConvertedFolder, open_converted
from int8conv.runtime.decoder.decoder import Decoder
from int8conv.runtime.weights.weights import ConvertedWeights

from ...formats.damage import rejected


def spoil_indices(converted: ConvertedFolder) -> None:
    """Every outlier column becomes one far outside, in place and with the time of writing as it was."""
    for linear in converted.linears.values():
        index = linear.outlier_index
        assert index is not None
        path = converted.folder / index.file.name
        before = path.stat()
        with path.open("r+b") as file:
            file.seek(index.offset)
            file.write(np.full(index.shape, 1 << 30, np.int32).tobytes())
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def opened(converted: Path) -> ConvertedFolder:
    return open_converted(converted)


def test_outlier_columns_are_copied_when_they_are_checked(converted: Path) -> None:
    model = int8conv.load(converted)
    tokens = torch.arange(40)[None]
    before = model.logits(tokens)
    spoil_indices(open_converted(converted))
    assert torch.equal(model.logits(tokens), before)


def test_columns_that_change_between_check_and_load_are_refused(opened: ConvertedFolder) -> None:
    spoil_indices(opened)
    weights = ConvertedWeights(opened, torch.float32)
    index = next(iter(opened.linears.values())).outlier_index
    assert index is not None
    with rejected(OutlierIndexError, index.name, "out of range"):
        weights._checked(index, 256)


def test_a_shard_that_is_replaced_between_check_and_load(
    converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header that was checked is not that of the file which would be mapped."""
    build = Decoder.__init__

    def replace(*args: object, **kwargs: object) -> None:
        for path in converted.glob("*.safetensors"):
            (converted / "new").write_bytes(path.read_bytes()[:10_000])
            (converted / "new").replace(path)
        build(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Decoder, "__init__", replace)
    with rejected(FileChangedError, str(converted)):
        int8conv.load(converted)


def test_a_shard_that_is_replaced_after_loading_does_no_harm(converted: Path) -> None:
    model = int8conv.load(converted)
    tokens = torch.arange(40)[None]
    before = model.logits(tokens)
    for path in converted.glob("*.safetensors"):
        (converted / "new").write_bytes(bytes(1000))
        (converted / "new").replace(path)
    assert torch.equal(model.logits(tokens), before)


@pytest.mark.parametrize("how", ["overwritten", "truncated"])
def test_a_shard_that_is_written_to_after_loading_is_noticed(converted: Path, how: str) -> None:
    model = int8conv.load(converted)
    for path in converted.glob("*.safetensors"):
        if how == "truncated":
            os.truncate(path, 10_000)
        else:
            os.utime(path, ns=(0, 0))  # as a write would, at the clock's next step
    with rejected(FileChangedError, str(converted)):
        model.logits(torch.arange(4)[None])
