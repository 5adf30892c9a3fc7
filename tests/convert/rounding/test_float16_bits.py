"""16-bit floats as bits, against numpy's float16 and torch's bfloat16: every pattern, and rounding."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from int8conv.convert.rounding.float16_bits import (
    MAGNITUDE,
    largest_magnitudes,
    round_to_half,
    widen,
)
from int8conv.formats.safetensors.dtypes import INFINITY_BITS

ALL_PATTERNS = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
TORCH = {"F16": torch.float16, "BF16": torch.bfloat16}


def finite_patterns(dtype: str) -> npt.NDArray[np.uint16]:
    return ALL_PATTERNS[(ALL_PATTERNS & MAGNITUDE[dtype]) < INFINITY_BITS[dtype]]


def torch_rounded(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[np.uint16]:
    """The bits that torch rounds to."""
    half = torch.from_numpy(values).to(TORCH[dtype])
    return np.asarray(half.view(torch.int16).numpy()).view(np.uint16)


def interesting_floats() -> npt.NDArray[np.float32]:
    """Random bit patterns, numbers of the halves, the ties between them and their neighbours."""
    random = np.random.default_rng(0).integers(0, 1 << 32, 1 << 18, np.uint32)
    f16 = finite_patterns("F16").view(np.float16).astype(np.float32)
    positive = np.sort(f16[f16 >= 0])
    ties = ((positive[1:].astype(np.float64) + positive[:-1]) / 2).astype(np.float32)
    bf16_ties = (ALL_PATTERNS.astype(np.uint32) << 16) | 0x8000
    bits = np.concatenate([random, f16.view(np.uint32), ties.view(np.uint32), bf16_ties])
    bits = np.concatenate([bits, bits + np.uint32(1), bits - np.uint32(1)])
    values = bits.view(np.float32)
    values = np.concatenate([values, -values])
    return np.ascontiguousarray(values[np.isfinite(values)], np.float32)


def test_widen_is_exact_for_every_finite_float16() -> None:
    bits = finite_patterns("F16")
    assert len(bits) == 2 * 0x7C00
    wide = widen(bits, "F16", np.empty(len(bits), np.float32))
    expected = bits.view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(wide.view(np.uint32), expected.view(np.uint32))


def test_widen_is_exact_for_every_finite_bfloat16() -> None:
    bits = finite_patterns("BF16")
    assert len(bits) == 2 * 0x7F80
    wide = widen(bits, "BF16", np.empty(len(bits), np.float32))
    expected = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(wide.view(np.uint32), expected.view(np.uint32))


def test_widen_copies_float32() -> None:
    values = interesting_floats()
    wide = widen(values.view(np.uint32), "F32", np.empty(len(values), np.float32))
    np.testing.assert_array_equal(wide.view(np.uint32), values.view(np.uint32))


def test_widen_fills_and_returns_the_buffer_in_its_shape() -> None:
    out = np.empty((2, 3), np.float32)
    assert widen(np.full((2, 3), 0x3C00, np.uint16), "F16", out) is out
    np.testing.assert_array_equal(out, np.ones((2, 3)))


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_rounding_is_torchs(dtype: str) -> None:
    values = interesting_floats()
    bits, changed = round_to_half(values, dtype)
    expected = torch_rounded(values, dtype)
    assert bits.dtype == np.uint16
    np.testing.assert_array_equal(bits, expected)
    back = torch.from_numpy(expected.view(np.int16)).view(TORCH[dtype]).float().numpy()
    assert changed == np.count_nonzero(back != values)


def test_rounding_to_float16_is_numpys() -> None:
    values = interesting_floats()
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal(round_to_half(values, "F16")[0], expected)


@pytest.mark.parametrize(
    ("dtype", "value", "bits"),
    [
        ("F16", 0.0, 0x0000),
        ("F16", -0.0, 0x8000),
        ("F16", 1.0 + 2.0**-11, 0x3C00),  # a tie goes to even, down
        ("F16", 1.0 + 3 * 2.0**-11, 0x3C02),  # and up
        ("F16", 2.0**-24, 0x0001),  # the smallest subnormal
        ("F16", 2.0**-25, 0x0000),  # its half is a tie
        ("F16", 1.5 * 2.0**-25, 0x0001),
        ("F16", 2.0**-14 - 2.0**-25, 0x0400),  # from the subnormals up to the smallest normal
        ("F16", 65504.0, 0x7BFF),
        ("F16", 65519.0, 0x7BFF),
        ("F16", 65520.0, 0x7C00),  # overflow is infinity
        ("F16", -65520.0, 0xFC00),
        ("BF16", 1.0 + 2.0**-8, 0x3F80),
        ("BF16", 1.0 + 3 * 2.0**-8, 0x3F82),
        ("BF16", 2.0**-133, 0x0001),
        ("BF16", 2.0**-134, 0x0000),
        ("BF16", 3.3895314e38, 0x7F7F),
        ("BF16", 3.4e38, 0x7F80),
        ("BF16", -3.4e38, 0xFF80),
    ],
)
def test_rounding_by_hand(dtype: str, value: float, bits: int) -> None:
    rounded, changed = round_to_half(np.array([[value]], np.float32), dtype)
    assert rounded.tolist() == [[bits]]
    exact = (bits & 0x7FFF) < INFINITY_BITS[dtype] and bool(
        widen(rounded, dtype, np.empty((1, 1), np.float32))[0, 0] == np.float32(value)
    )
    assert changed == (0 if exact else 1)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_rounding_what_was_rounded_changes_nothing(values: list[float]) -> None:
    for dtype in ("F16", "BF16"):
        bits, _ = round_to_half(np.array(values, np.float32), dtype)
        finite = bits[(bits & 0x7FFF) < INFINITY_BITS[dtype]]
        wide = widen(finite, dtype, np.empty(len(finite), np.float32))
        again, changed = round_to_half(wide, dtype)
        assert changed == 0
        np.testing.assert_array_equal(again, finite)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_largest_magnitudes_are_those_of_the_values(dtype: str) -> None:
    generator = np.random.default_rng(1)
    values = generator.normal(size=(33, 7)).astype(np.float32) * 10.0 ** generator.integers(-4, 4)
    values[0] = 0
    values[1] = -0.0
    bits = values.view(np.uint32) if dtype == "F32" else round_to_half(values, dtype)[0]
    before = bits.copy()
    largest = largest_magnitudes(bits, dtype, np.empty_like(bits))
    wide = widen(bits, dtype, np.empty(bits.shape, np.float32))
    found = widen(largest, dtype, np.empty(len(largest), np.float32))
    np.testing.assert_array_equal(found, np.abs(wide).max(axis=1))
    np.testing.assert_array_equal(bits, before)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_infinity_is_above_every_number_and_nan_above_infinity(dtype: str) -> None:
    infinity = INFINITY_BITS[dtype]
    sign = MAGNITUDE[dtype] + 1
    kind = np.uint32 if dtype == "F32" else np.uint16
    bits = np.array(
        [[0, infinity - 1, 1], [infinity - 1, sign | infinity, 0], [sign | (infinity + 1), infinity, 5]],
        kind,
    )  # fmt: skip
    found = largest_magnitudes(bits, dtype, np.empty_like(bits))
    assert found.tolist() == [infinity - 1, infinity, infinity + 1]


def test_largest_magnitudes_of_no_columns_are_zero() -> None:
    bits = np.empty((3, 0), np.uint16)
    assert largest_magnitudes(bits, "F16", bits).tolist() == [0, 0, 0]
