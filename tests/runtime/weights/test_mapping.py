"""Tensors as views of mapped files, or read: the bytes, dtypes and shapes of safetensors' own reader."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from int8conv.errors import FileChangedError, UnsupportedDtypeError
from int8conv.formats.safetensors.header import read_header
from int8conv.formats.safetensors.storage import LocalFile
from int8conv.formats.safetensors.stored import StoredTensor
from int8conv.formats.source.checkpoint import open_checkpoint
from int8conv.formats.source.matrix import find_matrix
from int8conv.runtime.weights import mapping
from int8conv.runtime.weights.mapping import (
    TORCH_DTYPES,
    MappedFiles,
    read_matrix,
    read_tensor,
    torch_dtype,
)

from ...checkpoints import put_fp8, write_checkpoint
from ...formats.damage import rejected

TENSORS = {
    "a.f16": torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).half(),
    "b.bf16": torch.arange(6).bfloat16(),
    "c.f32": torch.tensor(2.5),
    "d.f64": torch.tensor([[1.0, 2.0]]).double(),
    "e.i8": torch.tensor([[[-127], [127]]]).char(),
    "f.i32": torch.arange(5, dtype=torch.int32),
    "g.empty": torch.empty(0, 7),
    "h.i64": torch.arange(3),
}


def stored_of(path: Path) -> dict[str, StoredTensor]:
    header, file = read_header(path), LocalFile(path)
    return {
        t.name: StoredTensor(t.name, t.dtype, t.shape, file, header.payload_offset + t.begin, t.nbytes)
        for t in header.tensors.values()
    }  # fmt: skip


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, StoredTensor]:
    save_file(TENSORS, tmp_path / "x.safetensors")
    return stored_of(tmp_path / "x.safetensors")


def test_views_and_copies_are_the_stored_tensors(stored: dict[str, StoredTensor]) -> None:
    files = MappedFiles()
    for name in TENSORS.keys() - {"h.i64"}:
        for found in (files.tensor(stored[name]), read_tensor(stored[name])):
            assert (found.dtype, found.shape) == (TENSORS[name].dtype, TENSORS[name].shape)
            assert torch.equal(found, TENSORS[name])


def test_every_view_lies_in_the_one_mapping_of_its_file(
    stored: dict[str, StoredTensor], tmp_path: Path
) -> None:
    save_file({"z": torch.ones(3)}, tmp_path / "other.safetensors")
    other = stored_of(tmp_path / "other.safetensors")["z"]
    files = MappedFiles()
    starts = {
        files.tensor(each).data_ptr() - each.offset
        for name, each in stored.items()
        if name not in ("g.empty", "h.i64")
    }
    assert len(starts) == 1
    assert starts.pop() % mmap.PAGESIZE == 0
    assert torch.equal(files.tensor(other), torch.ones(3))
    assert len(files._maps) == 2


def test_writing_to_a_view_does_not_change_the_file(stored: dict[str, StoredTensor]) -> None:
    file = stored["a.f16"].file
    assert isinstance(file, LocalFile)
    before = file.path.read_bytes()
    MappedFiles().tensor(stored["a.f16"]).zero_()
    assert file.path.read_bytes() == before


def test_tensors_that_lie_together_are_one(tmp_path: Path) -> None:
    parts = {"a": torch.arange(6).reshape(2, 3).half(), "b": torch.ones(1, 3).half(), "c": torch.zeros(0, 3).half()}  # fmt: skip
    save_file(parts, tmp_path / "x")
    stored = stored_of(tmp_path / "x")
    files = MappedFiles()
    lying = sorted((stored["a"], stored["b"]), key=lambda t: t.offset)
    found = files.fused([*lying, stored["c"]])
    assert torch.equal(found, torch.cat([parts[t.name] for t in lying]))
    assert found.data_ptr() == files.tensor(lying[0]).data_ptr()
    assert files.fused([stored["c"]] * 2).shape == (0, 3)


@pytest.mark.parametrize("name", ["a.f16", "d.f64", "c.f32", "e.i8"])
def test_a_tensor_at_an_odd_offset(stored: dict[str, StoredTensor], name: str) -> None:
    """Legal in a foreign file; torch needs it aligned, so it is copied."""
    file = stored[name].file
    assert isinstance(file, LocalFile)
    data = file.path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    moved = file.path.with_name("moved")
    moved.write_bytes((length + 1).to_bytes(8, "little") + data[8 : 8 + length] + b" " + data[8 + length :])  # fmt: skip
    odd = stored_of(moved)[name]
    assert odd.offset % 2 == 1
    assert torch.equal(MappedFiles().tensor(odd), TENSORS[name])


def test_a_file_that_changes_in_place_is_noticed(stored: dict[str, StoredTensor]) -> None:
    files, file = MappedFiles(), stored["a.f16"].file
    assert isinstance(file, LocalFile)
    files.check()
    files.tensor(stored["a.f16"])
    files.check()
    os.utime(file.path, ns=(0, 0))
    with rejected(FileChangedError, str(file.path)):
        files.check()
    files = MappedFiles()
    fresh = stored_of(file.path)["b.bf16"]
    files.tensor(fresh)
    os.truncate(file.path, 10)
    with rejected(FileChangedError, str(file.path)):
        files.check()


def test_what_the_runtime_cannot_compute_with(stored: dict[str, StoredTensor]) -> None:
    for use in (torch_dtype, MappedFiles().tensor, read_tensor):
        with rejected(UnsupportedDtypeError, "x.safetensors", "'h.i64'", "F16 or BF16", "found I64"):  # fmt: skip
            use(stored["h.i64"])
    known = {stored[name].dtype: tensor.dtype for name, tensor in TENSORS.items() if name != "h.i64"}  # fmt: skip
    assert known == TORCH_DTYPES


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)  # fmt: skip
@pytest.mark.parametrize("block", [1, 7, 1 << 18])
def test_a_matrix_that_is_stored_turned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, block: int
) -> None:
    monkeypatch.setattr(mapping, "_BLOCK_ELEMENTS", block)
    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[0, 0] = 2.0**-20
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, tensors={"w": weight}))
    found = read_matrix(find_matrix(checkpoint, checkpoint.tensors["w"], transposed=True))
    assert found.dtype == torch.float32
    assert torch.equal(found, weight.float().t())


@pytest.mark.parametrize("scales", ["tensor", "row", "block"])
def test_fp8_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scales: str) -> None:
    monkeypatch.setattr(mapping, "_BLOCK_ELEMENTS", 1000)
    write_checkpoint(tmp_path)
    decoded = put_fp8(tmp_path, scales)
    checkpoint = open_checkpoint(tmp_path)
    name = "model.layers.0.mlp.down_proj.weight"
    found = read_matrix(find_matrix(checkpoint, checkpoint.tensors[name]))
    np.testing.assert_array_equal(found, decoded[name])
