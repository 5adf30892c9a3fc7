"""Figures of a picture, from tensors made by hand: channels' magnitudes, and errors expected of linears."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from int8conv.convert.outliers import figures
from int8conv.convert.outliers.figures import binned, expected_errors, outlier_map
from int8conv.formats.int8.folder import QuantizedLinear
from int8conv.formats.int8.manifest import InputGroup
from int8conv.formats.int8.stats import InputStats, Stats
from int8conv.formats.safetensors.header import read_header
from int8conv.formats.safetensors.storage import LocalFile
from int8conv.formats.safetensors.stored import StoredTensor

NAN = float("nan")


def folder(path: Path, **linears: tuple[Tensor, Tensor, list[int] | None, Tensor | None]) -> Any:
    """Linears by path: codes ``[out, in]``, scales, outlier columns and their weights; as of a ``ConvertedFolder``."""
    tensors = {}
    for name, (codes, scale, index, columns) in linears.items():
        tensors |= {f"{name}.codes": codes.char()[:, :, None], f"{name}.scale": scale.float()}
        if index is not None and columns is not None:
            tensors |= {f"{name}.index": torch.tensor(index, dtype=torch.int32), f"{name}.columns": columns}  # fmt: skip
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path / "x")
    header = read_header(path / "x")
    stored = {
        t.name: StoredTensor(t.name, t.dtype, t.shape, LocalFile(path / "x"), header.payload_offset + t.begin, t.nbytes)
        for t in header.tensors.values()
    }  # fmt: skip
    return SimpleNamespace(linears={
        n: QuantizedLinear(n, stored[f"{n}.codes"], stored[f"{n}.scale"], stored.get(f"{n}.index"), stored.get(f"{n}.columns"), None)
        for n in linears
    })  # fmt: skip


def group(*linears: str, width: int, outliers: int) -> InputGroup:
    return InputGroup(linears, width, outliers, None)


def seen(absmax: list[float]) -> InputStats:
    zeros = np.zeros(len(absmax))
    return InputStats(
        np.array(absmax, np.float32),
        zeros.astype(np.int64),
        np.stack([zeros] * 2),
        np.stack([zeros] * 2),
        zeros.astype(np.float32),
    )


ZEROS = torch.zeros(2, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_without_statistics_kept_columns_show_their_largest_weight(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    """Over all linears of the input, whatever its sign; other channels show nothing, nor does an input that is wider than this."""
    q = ZEROS, torch.ones(2), [1, 3], torch.tensor([[0.5, -3.0], [-2.5, 1.0]]).to(dtype)
    k = ZEROS, torch.ones(2), [1, 3], torch.tensor([[-0.25, 3.5], [1.0, 0.0]]).to(dtype)
    o = torch.zeros(1, 6), torch.ones(1), None, None
    converted = folder(tmp_path, q=q, k=k, o=o)
    groups = [group("q", "k", width=4, outliers=2), group("o", width=6, outliers=0)]
    found = outlier_map(groups, converted, None)
    expected = [[NAN, 2.5, NAN, 3.5, NAN, NAN], [NAN] * 6]
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float64


def test_statistics_show_every_channel_of_the_inputs_that_they_have(tmp_path: Path) -> None:
    """Looked up by any linear of an input; an input that they lack shows its columns."""
    q = ZEROS, torch.ones(2), [2], torch.tensor([[1.0], [9.0]]).half()
    converted = folder(tmp_path, q=q)
    inputs = {"v": seen([1.0, 2.0, 3.0])}
    stats = Stats("", "", (), 1, {"v": ("v", "w")}, (), inputs)
    groups = [group("w", width=3, outliers=1), group("q", width=4, outliers=1)]
    found = outlier_map(groups, converted, stats)
    np.testing.assert_array_equal(found, [[1, 2, 3, NAN], [NAN, NAN, 9, NAN]])


def test_bins_show_the_largest() -> None:
    values = np.array([[1.0, NAN, 9.0, 2.0, 3.0], [NAN, NAN, 0.0, NAN, -1.0]])
    np.testing.assert_array_equal(binned(values, 3), [[1, 9, 3], [NAN, 0, -1]])
    np.testing.assert_array_equal(binned(values, 2), [[9, 3], [0, -1]])
    np.testing.assert_array_equal(binned(values, 1), [[9], [0]])
    for most in (5, 6, figures.MOST_BINS):
        np.testing.assert_array_equal(binned(values, most), values)
    wide = np.arange(2050.0)[None]
    assert binned(wide)[0, -1] == 2049
    assert binned(wide).shape == (1, 684)  # of three each, as two would be one too many


@pytest.mark.parametrize("rows", [1, 2, 256])
def test_the_expected_error_is_that_of_uniform_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """Hand computed: signal of codes and columns, noise of ``scale^2 / 12`` for each weight outside the columns."""
    monkeypatch.setattr(figures, "_BLOCK_ROWS", rows)
    codes = torch.tensor([[127, 0, -3], [0, 0, 10], [1, 0, 0]])
    scale = torch.tensor([0.5, 2.0, 0.0])
    columns = torch.tensor([[3.0], [-1.0], [0.0]])
    converted = folder(
        tmp_path,
        plain=(codes, scale, None, None),
        mixed=(codes, scale, [1], columns.bfloat16()),
        zero=(codes * 0, scale, None, None),
    )
    signal = 0.25 * (127**2 + 9) + 4 * 100
    noise = (0.25 + 4) / 12
    assert expected_errors(converted) == {
        "plain": pytest.approx((noise * 3 / signal) ** 0.5, rel=1e-12),
        "mixed": pytest.approx((noise * 2 / (signal + 10)) ** 0.5, rel=1e-12),
        "zero": 0.0,
    }


def test_it_is_near_the_measured_error(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(100, 300, generator=generator)
    columns = weight[:, [7, 9]].half()
    weight[:, [7, 9]] = 0
    scale = weight.abs().amax(1) / 127
    codes = (weight / scale[:, None]).round()
    noise = (codes * scale[:, None] - weight).double().square().sum()
    signal = weight.double().square().sum() + columns.double().square().sum()
    (found,) = expected_errors(folder(tmp_path, x=(codes, scale, [7, 9], columns))).values()
    assert found == pytest.approx(float((noise / signal).sqrt()), rel=0.02)
