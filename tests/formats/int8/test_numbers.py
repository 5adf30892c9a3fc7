"""What a writer owes the source's numbers: bit-exact, rounded within bounds and counted, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from int8conv.convert.converter import convert_checkpoint
from int8conv.errors import HalfOverflowError, NonFiniteWeightError
from int8conv.formats.int8.folder import QuantizedLinear, open_converted
from int8conv.formats.safetensors.stored import read_array
from int8conv.runtime.weights.mapping import read_tensor

from ...checkpoints import OPT, random_tensors, write_checkpoint
from ..damage import MANIFEST, rejected

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
Q = "model.decoder.layers.0.self_attn.q_proj"
EXTRA = "model.extra.weight"


def tensors_with_outliers(dtype: torch.dtype) -> dict[str, Tensor]:
    """An OPT whose q, k, v and fc1 have an outlier channel, with numbers that 16 bits round to subnormals."""
    tensors = random_tensors(OPT, dtype)
    for name, tensor in tensors.items():
        if name.endswith("layer_norm.weight"):
            tensor[5] = 40
        if name.endswith("bias"):
            tensor[:32] *= 2.0**-14
    tensors[EXTRA] = (torch.arange(32) / 7 * 2.0 ** torch.arange(-26, 6)).to(dtype).view(16, 2)
    return tensors


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int16 if tensor.itemsize == 2 else torch.int32)


def with_columns(linear: QuantizedLinear) -> list[int]:
    return [] if linear.outlier_index is None else read_array(linear.outlier_index).tolist()


@pytest.mark.rule("N4")
@pytest.mark.rule("N5")
@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize("asked", ["float16", "bfloat16"])
def test_16_bits_stay_bit_exact_whatever_is_asked_for(
    tmp_path: Path, dtype: str, asked: str
) -> None:
    tensors = tensors_with_outliers(DTYPES[dtype])
    source = write_checkpoint(tmp_path / "source", OPT, tensors)
    report = convert_checkpoint(source, tmp_path / "out", dtype=asked)
    assert report.rounded == 0
    opened = open_converted(tmp_path / "out")
    for stored in opened.others():
        assert stored.dtype == dtype
        assert torch.equal(bits(read_tensor(stored)), bits(tensors[stored.name]))
    kept = 0
    for path, linear in opened.linears.items():
        assert linear.bias is not None
        assert torch.equal(bits(read_tensor(linear.bias)), bits(tensors[f"{path}.bias"]))
        if linear.outlier_weight is not None:
            assert linear.outlier_weight.dtype == dtype
            columns = tensors[f"{path}.weight"][:, with_columns(linear)]
            assert torch.equal(bits(read_tensor(linear.outlier_weight)), bits(columns))
            kept += 1
    assert kept >= 8


@pytest.mark.rule("N4")
@pytest.mark.rule("N5")
@pytest.mark.parametrize("asked", ["float16", "bfloat16"])
def test_32_bits_are_rounded_to_nearest_even_and_counted(tmp_path: Path, asked: str) -> None:
    half = HALVES[asked]
    tensors = tensors_with_outliers(torch.float32)
    source = write_checkpoint(tmp_path / "source", OPT, tensors)
    report = convert_checkpoint(source, tmp_path / "out", dtype=asked)
    opened = open_converted(tmp_path / "out")
    expected = {name: tensors[name] for name in (t.name for t in opened.others())}
    for path, linear in opened.linears.items():
        expected[f"{path}.bias"] = tensors[f"{path}.bias"]
        if linear.outlier_weight is not None:
            columns = tensors[f"{path}.weight"][:, with_columns(linear)]
            expected[linear.outlier_weight.name] = columns
    changed = 0
    for name, exact in expected.items():
        stored = read_tensor(opened.checkpoint.tensors[name])
        if exact.ndim < 2:  # no matrix: stays in 32 bits
            assert torch.equal(bits(stored), bits(exact))
            continue
        assert stored.dtype == half
        assert torch.equal(bits(stored), bits(exact.to(half)))
        error = (stored.double() - exact.double()).abs()
        magnitude = exact.double().abs()
        if asked == "float16":
            bound = torch.where(magnitude < 2.0**-14, torch.tensor(2.0**-25), magnitude * 2.0**-11)
        else:
            bound = magnitude * 2.0**-8
        assert bool((error <= bound).all())
        changed += int((error > 0).sum())
    assert changed > 0
    assert report.rounded == changed
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["rounded"] == changed


@pytest.mark.rule("N5")
@pytest.mark.parametrize("value", [65520.0, -65520.0, 1e30])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.decoder.embed_positions.weight", (65, 63)),
        (EXTRA, (15, 1)),
    ],
)
def test_a_value_that_would_overflow_is_refused(
    tmp_path: Path, name: str, place: tuple[int, ...], value: float
) -> None:
    tensors = tensors_with_outliers(torch.float32)
    tensors[name][place] = value
    source = write_checkpoint(tmp_path / "source", OPT, tensors)
    named = ("model.safetensors", f"'{name}'", f"row {place[0]} ", "bfloat16")
    with rejected(HalfOverflowError, *named):
        convert_checkpoint(source, tmp_path / "out", outliers="none")
    assert not (tmp_path / "out").exists()
    convert_checkpoint(source, tmp_path / "out", outliers="none", dtype="bfloat16")


@pytest.mark.rule("N5")
@pytest.mark.parametrize("name", ["model.decoder.final_layer_norm.weight", f"{Q}.bias"])
def test_what_is_no_matrix_keeps_values_that_16_bits_lack(tmp_path: Path, name: str) -> None:
    tensors = tensors_with_outliers(torch.float32)
    tensors[name][3] = 1e30
    convert_checkpoint(write_checkpoint(tmp_path / "source", OPT, tensors), tmp_path / "out", outliers="none")  # fmt: skip
    stored = open_converted(tmp_path / "out").checkpoint.tensor(name)
    assert torch.equal(bits(read_tensor(stored)), bits(tensors[name]))


@pytest.mark.rule("N5")
def test_the_largest_value_that_fits_is_kept(tmp_path: Path) -> None:
    tensors = tensors_with_outliers(torch.float32)
    tensors[EXTRA][0, 0] = 65519.996
    source = write_checkpoint(tmp_path / "source", OPT, tensors)
    convert_checkpoint(source, tmp_path / "out", outliers="none")
    extra = open_converted(tmp_path / "out").checkpoint.tensor(EXTRA)
    assert read_tensor(extra)[0, 0] == 65504


@pytest.mark.rule("N4")
def test_an_outlier_column_that_would_overflow_is_refused(tmp_path: Path) -> None:
    tensors = tensors_with_outliers(torch.float32)
    tensors[f"{Q}.weight"][7, 5] = 1e6
    source = write_checkpoint(tmp_path / "source", OPT, tensors)
    with rejected(HalfOverflowError, "model.safetensors", f"'{Q}.weight'", "row 7 "):
        convert_checkpoint(source, tmp_path / "out")


@pytest.mark.rule("N6")
@pytest.mark.parametrize("outliers", ["calibrated", "none"])
@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_source_with_a_nan_or_an_infinity_is_refused(
    tmp_path: Path, dtype: str, value: float, outliers: str
) -> None:
    good = tensors_with_outliers(DTYPES[dtype])
    names = ["model.decoder.embed_tokens.weight", f"{Q}.weight", f"{Q}.bias", EXTRA]
    for number, name in enumerate([*names, "model.decoder.layers.1.final_layer_norm.bias"]):
        damaged = good[name].clone()
        damaged[-1] = value
        source = write_checkpoint(tmp_path / f"{number}", OPT, good | {name: damaged})
        row = f"row {len(damaged) - 1}"
        with rejected(NonFiniteWeightError, "model.safetensors", f"'{name}'", row):
            convert_checkpoint(source, tmp_path / "out", outliers=outliers)  # type: ignore[arg-type]
        assert not (tmp_path / "out").exists()
