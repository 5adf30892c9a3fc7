"""Matrices as they multiply, from tensors as they are stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from safetensors.torch import save_file
from torch import Tensor

from int8conv.errors import HalfOverflowError, UnsupportedDtypeError
from int8conv.formats.safetensors.buffers import Buffers
from int8conv.formats.safetensors.storage import LocalFile
from int8conv.formats.safetensors.stored import StoredTensor
from int8conv.formats.source import matrix
from int8conv.formats.source.checkpoint import Checkpoint, open_checkpoint
from int8conv.formats.source.matrix import Matrix, MatrixReader, as_rows, find_matrix


def checkpoint_with(folder: Path, tensor: Tensor) -> Checkpoint:
    (folder / "config.json").write_text("{}")
    save_file({"before": torch.ones(3), "t": tensor}, folder / "model.safetensors")
    return open_checkpoint(folder)


def read(source: Matrix, block_elements: int) -> tuple[Tensor, str]:
    reader = MatrixReader(source, block_elements)
    blocks, rows = [], 0
    for first, bits in reader.blocks():
        assert first == rows
        assert len(bits) * source.shape[1] <= max(block_elements, source.shape[1])
        rows += len(bits)
        blocks.append(bits.copy())
        bits[:] = 0xFF  # the caller may
    whole = np.concatenate(blocks).reshape(source.shape)
    kind = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}[source.dtype]
    signed = whole.view(np.int32 if source.dtype == "F32" else np.int16)
    return torch.from_numpy(signed).view(kind), reader.checksum()


def checksum(tensor: Tensor) -> str:
    return xxhash.xxh3_128_hexdigest(tensor.contiguous().view(torch.uint8).numpy().tobytes())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("block_elements", [1, 17, 64, 1 << 18])
@pytest.mark.parametrize("panel", [1, 100, 1 << 20])
def test_a_transposed_matrix(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    block_elements: int,
    panel: int,
) -> None:
    monkeypatch.setattr(matrix, "_PANEL_BYTES", panel)
    stored = torch.randn(13, 21).to(dtype)  # [in, out]
    checkpoint = checkpoint_with(tmp_path, stored)
    source = find_matrix(checkpoint, checkpoint.tensor("t"), transposed=True)
    assert source.shape == (21, 13)
    values, total = read(source, block_elements)
    assert torch.equal(values, stored.t())
    assert total == checksum(stored)


@pytest.mark.parametrize("transposed", [False, True])
def test_one_of_a_stack(tmp_path: Path, transposed: bool) -> None:
    stack = torch.randn(3, 5, 8).half()
    checkpoint = checkpoint_with(tmp_path, stack)
    for part in range(3):
        source = find_matrix(checkpoint, checkpoint.tensor("t"), part=part, transposed=transposed)
        values, total = read(source, 16)
        assert torch.equal(values, stack[part].t() if transposed else stack[part])
        assert total == checksum(stack[part])
        assert (source.name, source.nbytes) == (f"t[{part}]", 5 * 8 * 2)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("block_elements", [1, 40, 1 << 18])
def test_f64_is_read_as_f32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transposed: bool, block_elements: int
) -> None:
    monkeypatch.setattr(matrix, "_PANEL_BYTES", 300)
    stored = torch.randn(13, 21, dtype=torch.float64)
    stored[0, 0], stored[1, 2], stored[12, 20] = 1 + 2**-24, 1e-310, -(2.0**127)
    checkpoint = checkpoint_with(tmp_path, stored)
    source = find_matrix(checkpoint, checkpoint.tensor("t"), transposed=transposed)
    assert (source.dtype, source.nbytes) == ("F32", 13 * 21 * 8)
    values, total = read(source, block_elements)
    assert torch.equal(values, (stored.t() if transposed else stored).float())
    assert total == checksum(stored)


@pytest.mark.parametrize("transposed", [False, True])
def test_f64_past_f32_is_named(tmp_path: Path, transposed: bool) -> None:
    stored = torch.zeros(3, 5, dtype=torch.float64)
    stored[2, 4] = 1e39
    checkpoint = checkpoint_with(tmp_path, stored)
    source = find_matrix(checkpoint, checkpoint.tensor("t"), transposed=transposed)
    with pytest.raises(HalfOverflowError, match=f"row {4 if transposed else 2} .* F32"):
        read(source, 5)


def test_buffers_are_shared(tmp_path: Path) -> None:
    checkpoint = checkpoint_with(tmp_path, torch.randn(4, 6).half())
    source = find_matrix(checkpoint, checkpoint.tensor("t"))
    buffers = Buffers()
    ((_, first),) = MatrixReader(source, 100, buffers).blocks()
    ((_, second),) = MatrixReader(source, 100, buffers).blocks()
    assert np.shares_memory(first, second)


@pytest.mark.parametrize("shape", [(2**40, 0), (0, 2**40), (10**9, 0, 64)])
def test_no_elements_are_no_rows(shape: tuple[int, ...]) -> None:
    """However long the other axes are: they cost a file nothing."""
    stored = StoredTensor("t", "F16", shape, LocalFile(Path("no file")), 0, 0)
    assert as_rows(stored, 8).shape == (0, 0)


@pytest.mark.parametrize(
    ("shape", "block", "rows"),
    [
        ((), 8, (1, 1)), ((5,), 8, (5, 1)), ((0,), 8, (0, 0)), ((3, 0), 8, (0, 0)), ((4, 8), 8, (4, 8)),
        ((2, 2, 3), 8, (2, 6)), ((1, 3 * 2**20), 1 << 18, (768, 4096)), ((3, 7), 5, (21, 1)),
    ],
)  # fmt: skip
def test_any_tensor_as_rows(
    tmp_path: Path, shape: tuple[int, ...], block: int, rows: tuple[int, int]
) -> None:
    tensor = torch.randn(shape).half()
    checkpoint = checkpoint_with(tmp_path, tensor)
    source = as_rows(checkpoint.tensor("t"), block)
    assert source.shape == rows
    reader = MatrixReader(source, block)
    data = b"".join(bits.tobytes() for _, bits in reader.blocks())
    assert data == tensor.numpy().tobytes()
    assert reader.checksum() == xxhash.xxh3_128_hexdigest(data)


def test_a_stack_of_fp8_is_refused(tmp_path: Path) -> None:
    checkpoint = checkpoint_with(tmp_path, torch.ones(2, 4, 4).to(torch.float8_e4m3fn))
    with pytest.raises(UnsupportedDtypeError, match="F16 or BF16 or F32 or F64, found F8_E4M3"):
        find_matrix(checkpoint, checkpoint.tensor("t"), part=1)
