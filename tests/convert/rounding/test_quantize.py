"""The arithmetic of SPEC.md 1.1: bounds that must hold for any rows, and an independent computation in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from int8conv.convert.rounding.float16_bits import Bits, widen
from int8conv.convert.rounding.quantize import NonFiniteRowError, RowQuantizer
from int8conv.formats.safetensors.dtypes import INFINITY_BITS

DTYPES = ("F16", "BF16", "F32")
SIGN = {"F16": 0x8000, "BF16": 0x8000, "F32": 0x80000000}

DIVISION_SLACK = 128 * 2.0**-24
"""A code is rint(fp32(w / scale)): the quotient, at most 127.00001, is off by 2^-24 of itself before it is rounded."""


@dataclass
class Result:
    """What the quantizer gave, copied out of its buffers, with the source widened to float64."""

    wide: npt.NDArray[np.float64]
    codes: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]
    outliers: Bits


def bits_type(dtype: str) -> type[np.uint16] | type[np.uint32]:
    return np.uint32 if dtype == "F32" else np.uint16


def quantize(bits: Bits, dtype: str, columns: list[int] | None = None) -> Result:
    wide = widen(bits, dtype, np.empty(bits.shape, np.float32)).astype(np.float64)
    quantizer = RowQuantizer(dtype, np.array(columns or [], np.int32))
    block = quantizer.quantize(bits.copy())
    return Result(wide, block.codes.copy(), block.scale.copy(), block.outliers.copy())


def bits_of(values: object, dtype: str) -> Bits:
    """Bits of float values that the dtype holds exactly."""
    wide = np.array(values, np.float32)
    if dtype == "F32":
        return wide.view(np.uint32)
    if dtype == "F16":
        return wide.astype(np.float16).view(np.uint16)
    return (wide.view(np.uint32) >> 16).astype(np.uint16)


@st.composite
def matrices(draw: st.DrawFn) -> tuple[str, Bits, list[int]]:
    """A dtype, finite bits ``[rows, columns]`` and outlier columns."""
    dtype = draw(st.sampled_from(DTYPES))
    rows, columns = draw(st.integers(1, 7)), draw(st.integers(1, 33))
    top = INFINITY_BITS[dtype] - 1
    magnitudes = st.one_of(
        st.integers(0, top),
        st.sampled_from([0, 1, 2, top, top - 1]),  # zero, smallest subnormals, largest numbers
        st.integers(0, top >> 6),
    )
    patterns = st.builds(lambda m, s: m | (SIGN[dtype] if s else 0), magnitudes, st.booleans())
    row = st.one_of(st.just([0] * columns), st.lists(patterns, min_size=columns, max_size=columns))
    values = draw(st.lists(row, min_size=rows, max_size=rows))
    outliers = draw(st.sets(st.integers(0, columns - 1), max_size=columns))
    return dtype, np.array(values, np.uint64).astype(bits_type(dtype)), sorted(outliers)


@settings(deadline=None, max_examples=300)
@given(matrices())
def test_any_rows(matrix: tuple[str, Bits, list[int]]) -> None:
    dtype, bits, columns = matrix
    result = quantize(bits, dtype, columns)
    scale = result.scale.astype(np.float64)
    inner = np.delete(np.arange(bits.shape[1]), columns)

    assert np.isfinite(result.scale).all()
    assert ((scale == 0) | (scale >= 2.0**-126)).all()
    assert (np.abs(result.codes.astype(int)) <= 127).all()
    assert not result.codes[:, columns].any()
    np.testing.assert_array_equal(result.outliers, bits[:, columns])

    error = np.abs(result.codes * scale[:, None] - result.wide)[:, inner]
    assert (error <= scale[:, None] * (0.5 + DIVISION_SLACK)).all()
    assert (scale[~result.wide[:, inner].any(axis=1)] == 0).all()


@settings(deadline=None, max_examples=300)
@given(matrices())
def test_any_rows_against_the_formula(matrix: tuple[str, Bits, list[int]]) -> None:
    """SPEC.md 1.1, each fp32(...) from float64: a double-rounded quotient of floats is the float quotient."""
    dtype, bits, columns = matrix
    result = quantize(bits, dtype, columns)
    inner = result.wide.copy()
    inner[:, columns] = 0
    for row, codes, scale in zip(inner, result.codes, result.scale, strict=True):
        largest = np.abs(row).max()
        expected = np.float64(0)
        if largest:
            expected = np.maximum(np.float64(np.float32(largest / 127)), 2.0**-126)
        assert np.float64(scale) == expected
        if expected == 0:
            assert not codes.any()
            continue
        quotient = (row / expected).astype(np.float32)
        np.testing.assert_array_equal(codes, np.clip(np.rint(quotient), -127, 127))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_by_hand(dtype: str) -> None:
    rows = [
        [127.0, -127.0, 1.0, 0.0],
        [63.5, 31.75, 0.25, -0.75],  # scale 0.5: 31.75 is 63.5 rows up, a tie to even
        [0.0, -0.0, 0.0, 0.0],
        [-1.0, 1.0, 0.0, 1.0],
    ]
    result = quantize(bits_of(rows, dtype), dtype)
    assert result.scale.tolist() == [1.0, 0.5, 0.0, np.float32(1 / 127)]
    assert result.codes.tolist() == [
        [127, -127, 1, 0],
        [127, 64, 0, -2],
        [0, 0, 0, 0],
        [-127, 127, 0, 127],
    ]


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("F16", 65504.0), ("F16", 2.0**-24), ("BF16", 3.3895314e38), ("F32", 3.4028235e38), ("F32", 3e38)],
)  # fmt: skip
def test_extremes_use_the_whole_range(dtype: str, value: float) -> None:
    result = quantize(bits_of([[value, -value, 0.0]], dtype), dtype)
    assert result.codes.tolist() == [[127, -127, 0]]
    np.testing.assert_allclose(result.scale.astype(np.float64) * 127, [value], rtol=2.0**-24)


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_a_scale_never_is_subnormal(dtype: str) -> None:
    """Where a / 127 would be, the bound takes its place, and codes are small instead of wrong."""
    smallest = 2.0**-126
    rows = [
        [smallest, -smallest],
        [2 * smallest, 0.0],
        [2.0**-133, 0.0],
        [127 * smallest, smallest],
    ]
    result = quantize(bits_of(rows, dtype), dtype)
    assert result.scale.tolist() == [smallest] * 4
    assert result.codes.tolist() == [[1, -1], [2, 0], [0, 0], [127, 1]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_outlier_column_does_not_count_for_the_scale(dtype: str) -> None:
    bits = bits_of([[1.0, 1000.0, -2.0], [0.0, -0.5, 0.0]], dtype)
    result = quantize(bits, dtype, [1])
    assert result.scale.tolist() == [np.float32(2 / 127), 0.0]
    assert result.codes.tolist() == [[64, 0, -127], [0, 0, 0]]
    np.testing.assert_array_equal(result.outliers, bits[:, [1]])


def test_buffers_are_used_again_for_shorter_blocks() -> None:
    quantizer = RowQuantizer("F16", np.empty(0, np.int32))
    first = quantizer.quantize(bits_of(np.full((4, 3), 2.0), "F16"))
    second = quantizer.quantize(bits_of([[0.5, -1.0, 0.0]], "F16"))
    assert second.codes.tolist() == [[64, -127, 0]]
    assert second.scale.shape == (1,)
    assert np.shares_memory(first.codes, second.codes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["infinity", "negative infinity", "nan", "negative nan"])
@pytest.mark.parametrize("column", [0, 2])
def test_the_row_of_a_value_that_is_not_finite_is_named(dtype: str, kind: str, column: int) -> None:
    """In an outlier column (2) as outside of them (0); the first such row."""
    bad = INFINITY_BITS[dtype] + ("nan" in kind) + (SIGN[dtype] if "negative" in kind else 0)
    bits = bits_of(np.ones((6, 3)), dtype)
    bits[4, column] = bits[5, 1] = bad
    quantizer = RowQuantizer(dtype, np.array([2], np.int32))
    with pytest.raises(NonFiniteRowError) as caught:
        quantizer.quantize(bits)
    assert caught.value.row == 4
