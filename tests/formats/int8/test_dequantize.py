"""Dequantized rows are the format's: against torch, for every block size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import int8conv
from int8conv.formats.int8.dequantize import dequantized_blocks
from int8conv.formats.int8.folder import open_converted

from ...checkpoints import write_checkpoint


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_are_codes_times_scales_and_outlier_columns(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    write_checkpoint(tmp_path / "source", dtype=dtype)
    int8conv.convert_checkpoint(tmp_path / "source", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model-00001-of-00001.safetensors")
    for path, linear in open_converted(tmp_path / "out").linears.items():
        expected = tensors[f"{path}.weight"].squeeze(-1) * tensors[f"{path}.weight_scale"][:, None]
        expected[:, tensors[f"{path}.outlier_index"].long()] = tensors[f"{path}.outlier_weight"].float()  # fmt: skip
        assert linear.outliers > 0
        for elements in (1, 7 * linear.in_features + 3, 1 << 20):
            blocks = list(dequantized_blocks(linear, elements))
            assert [first for first, _ in blocks] == list(range(0, linear.out_features, len(blocks[0][1])))  # fmt: skip
            found = np.concatenate([values for _, values in blocks])
            assert found.dtype == np.float32
            assert np.array_equal(found, expected.numpy())
