"""FP8 codes and their scales, against torch's own decoding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from int8conv.errors import CompanionError, ShapeError, UnsupportedDtypeError
from int8conv.formats.source.checkpoint import open_checkpoint
from int8conv.formats.source.fp8 import decoded, find_scales
from int8conv.formats.source.matrix import MatrixReader, find_matrix

from ...checkpoints import LLAMA, edit_config, put_fp8, write_checkpoint

Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("name", "dtype"), [("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)]
)
def test_every_code(name: str, dtype: torch.dtype) -> None:
    theirs = torch.arange(256, dtype=torch.uint8).view(dtype).float().numpy()
    np.testing.assert_array_equal(decoded(name), theirs)
    assert np.signbit(decoded(name)[128])  # negative zero


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("scales", ["tensor", "row", "block"])
@pytest.mark.parametrize("block_elements", [1, 200, 1 << 18])
def test_values(tmp_path: Path, dtype: torch.dtype, scales: str, block_elements: int) -> None:
    """Blocks of 32 x 48 that neither rows nor columns are a multiple of."""
    folder = write_checkpoint(tmp_path / "source")
    expected = put_fp8(folder, scales, dtype=dtype)
    checkpoint = open_checkpoint(folder)
    for name, values in expected.items():
        matrix = find_matrix(checkpoint, checkpoint.tensor(name))
        assert (matrix.dtype, matrix.shape) == ("F32", tuple(values.shape))
        blocks = [bits.copy() for _, bits in MatrixReader(matrix, block_elements).blocks()]
        np.testing.assert_array_equal(np.concatenate(blocks).view(np.float32), values.numpy())


def test_scales_in_another_shard_and_in_bfloat16(tmp_path: Path) -> None:
    weight = torch.randn(48, 64).to(torch.float8_e4m3fn)
    scale = torch.rand(48, 1).to(torch.bfloat16)
    folder = write_checkpoint(tmp_path, tensors={Q: weight, f"{Q}_scale": scale}, shards=2)
    checkpoint = open_checkpoint(folder)
    matrix = find_matrix(checkpoint, checkpoint.tensor(Q))
    assert matrix.scales is not None
    assert matrix.scales.tensor.file != matrix.file
    ((_, bits),) = MatrixReader(matrix, 1 << 18).blocks()
    np.testing.assert_array_equal(bits.view(np.float32), (weight.float() * scale.float()).numpy())


def test_blocks_are_128_wide_unless_the_config_says_otherwise(tmp_path: Path) -> None:
    tensors = {Q: torch.ones(130, 300).to(torch.float8_e4m3fn), f"{Q}_scale_inv": torch.ones(2, 3)}
    folder = write_checkpoint(tmp_path, tensors=tensors)
    checkpoint = open_checkpoint(folder)
    scales = find_scales(checkpoint, checkpoint.tensor(Q))
    assert (scales.rows, scales.columns, scales.shape) == (128, 128, (2, 3))
    edit_config(folder, quantization_config={"weight_block_size": [65, 100]})
    checkpoint = open_checkpoint(folder)
    assert find_scales(checkpoint, checkpoint.tensor(Q)).columns == 100


GROUPS = {"group_0": {"weights": {"strategy": "block", "block_structure": [64, 32]}}}


@pytest.mark.parametrize(
    "config",
    [
        {"compression_config": {"config_groups": GROUPS}},
        {"quantization_config": {"config_groups": GROUPS}},
        {"text_config": {"quantization_config": {"weight_block_size": [64, 32]}}},
        {
            "quantization_config": {
                "config_groups": {"a": {"weights": {"block_structure": "64x32"}}}
            }
        },
        {"quantization_config": {"config_groups": GROUPS | {"b": None, "c": {"weights": 5}}}},
        {"quantization_config": {"weight_block_size": [7, 7], "config_groups": GROUPS}},
    ],
)
def test_wherever_the_config_gives_the_size_of_blocks(
    tmp_path: Path, config: dict[str, object]
) -> None:
    tensors = {Q: torch.ones(130, 300).to(torch.float8_e4m3fn), f"{Q}_scale": torch.ones(3, 10)}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, LLAMA | config, tensors))
    scales = find_scales(checkpoint, checkpoint.tensor(Q))
    assert (scales.rows, scales.columns, scales.shape) == (64, 32, (3, 10))


@pytest.mark.parametrize("name", [f"{Q}_scale_inv", f"{Q}_scale", Q.replace("weight", "scale")])
def test_scales_that_are_powers_of_two(tmp_path: Path, name: str) -> None:
    """F8_E8M0, as DeepSeek-V3.2 has them; DeepSeek-V4 calls them ``.scale``."""
    weight = torch.randn(4, 6).to(torch.float8_e4m3fn)
    scale = torch.tensor([[2.0**-127], [2.0**-3], [1.0], [2.0**127]])
    tensors = {Q: weight, name: scale.to(torch.float8_e8m0fnu)}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, LLAMA, tensors))
    matrix = find_matrix(checkpoint, checkpoint.tensor(Q))
    assert matrix.scales is not None
    np.testing.assert_array_equal(matrix.scales.values(), scale.numpy())
    ((_, bits),) = MatrixReader(matrix, 100).blocks()
    np.testing.assert_array_equal(bits.view(np.float32), (weight.float() * scale).numpy())


def test_the_nan_of_powers_of_two(tmp_path: Path) -> None:
    scale = torch.tensor([255], dtype=torch.uint8).view(torch.float8_e8m0fnu)
    tensors = {Q: torch.ones(4, 6).to(torch.float8_e4m3fn), f"{Q}_scale": scale}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, LLAMA, tensors))
    scales = find_scales(checkpoint, checkpoint.tensor(Q))
    assert np.isnan(scales.values()).all()


@pytest.mark.parametrize("shape", [(4,), (2, 4, 4), (1, 2, 3, 4)])
def test_a_weight_that_is_no_matrix_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    tensors = {Q: torch.ones(shape).to(torch.float8_e4m3fn), f"{Q}_scale": torch.ones(())}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, LLAMA, tensors))
    with pytest.raises(ShapeError, match=r"not a matrix: expected \[out, in\]"):
        find_matrix(checkpoint, checkpoint.tensor(Q))


@pytest.mark.parametrize("size", [[128], [0, 128], "128", [128, 1.5]])
def test_a_malformed_block_size_is_refused(tmp_path: Path, size: object) -> None:
    folder = write_checkpoint(tmp_path)
    put_fp8(folder, "block")
    edit_config(folder, quantization_config={"weight_block_size": size})
    checkpoint = open_checkpoint(folder)
    with pytest.raises(CompanionError, match="weight_block_size"):
        find_scales(checkpoint, checkpoint.tensor(Q))


def test_scales_must_be_floats(tmp_path: Path) -> None:
    tensors = {Q: torch.ones(4, 4).to(torch.float8_e4m3fn), f"{Q}_scale": torch.ones(1).to(torch.uint8)}  # fmt: skip
    folder = write_checkpoint(tmp_path, tensors=tensors)
    checkpoint = open_checkpoint(folder)
    with pytest.raises(UnsupportedDtypeError, match=r"dtype of a scale.*found U8"):
        find_scales(checkpoint, checkpoint.tensor(Q))


def test_a_nan_code_is_named(tmp_path: Path) -> None:
    from int8conv.convert.converter import convert_checkpoint
    from int8conv.errors import NonFiniteWeightError

    folder = write_checkpoint(tmp_path / "source", LLAMA)
    put_fp8(folder, "row")
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    tensors[Q].view(torch.uint8)[5, 3] = 0x7F
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(NonFiniteWeightError, match="row 5"):
        convert_checkpoint(folder, tmp_path / "out", outliers="none")
