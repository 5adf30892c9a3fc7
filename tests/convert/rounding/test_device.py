"""Quantizing with PyTorch gives the CPU's bytes. On a GPU where there is one; the arithmetic is the same on any device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from int8conv.convert.converter import convert_checkpoint
from int8conv.convert.rounding.device import DeviceQuantizer
from int8conv.convert.rounding.quantize import NonFiniteRowError, RowQuantizer
from int8conv.convert.rounding.sample import RowSample
from int8conv.errors import ArgumentError

from ...checkpoints import LLAMA, random_tensors, write_checkpoint
from ...formats.damage import rejected
from .test_quantize import Bits, matrices

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@settings(deadline=None, max_examples=300)
@given(matrices())
def test_any_rows(matrix: tuple[str, Bits, list[int]]) -> None:
    dtype, bits, outliers = matrix
    columns = np.array(outliers, np.int32)
    samples = RowSample(*bits.shape), RowSample(*bits.shape)
    expected = RowQuantizer(dtype, columns, sample=samples[0]).quantize(bits.copy())
    found = DeviceQuantizer(dtype, columns, DEVICE, samples[1]).quantize(bits.copy())
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_array_equal(found.scale.view(np.uint32), expected.scale.view(np.uint32))
    np.testing.assert_array_equal(found.outliers, expected.outliers)
    assert samples[0].max_error == samples[1].max_error
    assert samples[0].sqnr_db == pytest.approx(samples[1].sqnr_db, abs=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 2])
def test_the_row_of_a_value_that_is_not_finite(value: float, column: int) -> None:
    bits = np.ones((6, 3), np.float32)
    bits[4, column] = bits[5, 1] = value
    with pytest.raises(NonFiniteRowError) as caught:
        DeviceQuantizer("F32", np.array([2], np.int32), DEVICE).quantize(bits.view(np.uint32))
    assert caught.value.row == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_same_folder(
    tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = random_tensors(LLAMA, dtype)
    tensors["model.layers.0.input_layernorm.weight"][3] = 40  # an outlier channel
    source = write_checkpoint(tmp_path / "source", LLAMA, tensors)
    assert convert_checkpoint(source, tmp_path / "cpu").outlier_columns
    used = []
    quantize = DeviceQuantizer.quantize
    monkeypatch.setattr(DeviceQuantizer, "quantize", lambda *a: used.append(1) or quantize(*a))
    convert_checkpoint(source, tmp_path / "device", device=f"{DEVICE.type}:0")
    assert used
    for path in (tmp_path / "cpu").iterdir():
        assert (tmp_path / "device" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("device", ["gpu", "cuda:99", ""])
def test_a_device_that_is_not_there(tmp_path: Path, source: Path, device: str) -> None:
    with rejected(ArgumentError, "device", "expected cpu", device):
        convert_checkpoint(source, tmp_path / "out", outliers="none", device=device)
    assert not (tmp_path / "out").exists()
