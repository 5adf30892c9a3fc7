"""Sizes and numpy types of safetensors' dtypes, against the library's own."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from int8conv.formats.safetensors.dtypes import (
    FLOAT_DTYPES,
    INFINITY_BITS,
    ITEM_BYTES,
    byte_count,
    numpy_dtype,
    widened,
)

WITH_NUMPY = [name for name in ITEM_BYTES if not name.startswith(("F8", "BF16", "C"))]


@pytest.mark.parametrize("name", WITH_NUMPY)
def test_a_dtype_is_what_the_library_calls_it(tmp_path: Path, name: str) -> None:
    """The library writes an array of that numpy type under that name, and in as many bytes."""
    array = np.zeros((2, 3), numpy_dtype(name))
    save_file({"x": array}, tmp_path / "x.safetensors")
    data = (tmp_path / "x.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    entry = json.loads(data[8 : 8 + length])["x"]
    assert entry["dtype"] == name
    assert entry["data_offsets"] == [0, byte_count(name, (2, 3))]


def test_numpy_types_are_little_endian() -> None:
    for name in WITH_NUMPY:
        assert numpy_dtype(name).str[0] in "<|"


def test_bfloat16_comes_as_its_bits() -> None:
    assert numpy_dtype("BF16") == np.dtype("<u2")
    (bits,) = np.frombuffer(b"\x80\x3f", numpy_dtype("BF16"))
    assert bits == 0x3F80  # 1.0


@pytest.mark.parametrize("name", ["F8_E4M3", "F8_E5M2", "F8_E8M0"])
def test_8_bit_floats_come_as_their_bits(name: str) -> None:
    assert numpy_dtype(name) == np.dtype("u1")


def test_complex_numbers() -> None:
    assert numpy_dtype("C64") == np.dtype("<c8")


def test_dtypes_of_parts_of_bytes() -> None:
    with pytest.raises(KeyError):
        numpy_dtype("F4")


@pytest.mark.parametrize(
    ("dtype", "shape", "nbytes"),
    [
        ("F8_E4M3", (3, 5), 15), ("BF16", (3, 5), 30), ("F32", (2, 2, 2), 32), ("C64", (7,), 56),
        ("F64", (), 8), ("I64", (0, 9), 0), ("I8", (1 << 40, 1 << 20), 1 << 60),
    ],
)  # fmt: skip
def test_bytes_of_a_tensor(dtype: str, shape: tuple[int, ...], nbytes: int) -> None:
    assert byte_count(dtype, shape) == nbytes


def test_floats_of_a_source() -> None:
    assert FLOAT_DTYPES == ("F16", "BF16", "F32", "F64")


def test_widening_is_exact() -> None:
    values = np.float32([0, -0.0, 1, -2.5, 2.0**-133, 3e38, np.inf, np.nan])
    bits = (values.view(np.uint32) >> 16).astype("<u2")
    kept = (bits.astype(np.uint32) << 16).view(np.float32)  # 3e38 has more bits than BF16
    np.testing.assert_array_equal(widened(bits, "BF16"), kept)
    halves = np.float16([0, -0.0, 1, 2.0**-24, 65504, np.inf, np.nan])
    np.testing.assert_array_equal(widened(halves, "F16"), halves.astype(np.float32))
    assert widened(bits, "BF16").dtype == widened(halves, "F16").dtype == np.float32


def test_infinity_is_where_finite_numbers_end() -> None:
    for dtype, kind in (("F16", np.float16), ("F32", np.float32)):
        bits = kind(np.inf).view(f"u{ITEM_BYTES[dtype]}")
        assert bits == INFINITY_BITS[dtype]
    assert widened(np.array([INFINITY_BITS["BF16"]], "<u2"), "BF16") == np.inf
