"""A worker's memory: taken once, used again, never shorter than what is asked for."""

from __future__ import annotations

import numpy as np

from int8conv.formats.safetensors.buffers import Buffers


def test_an_array_has_the_shape_and_dtype_asked_for_and_can_be_written() -> None:
    taken = Buffers().take("block", (3, 5), np.float32)
    assert (taken.shape, taken.dtype) == ((3, 5), np.float32)
    taken[...] = np.arange(15).reshape(3, 5)
    assert taken[2, 4] == 14
    assert taken.flags.c_contiguous


def test_the_same_name_is_the_same_memory_in_any_dtype() -> None:
    buffers = Buffers()
    first = buffers.take("block", (4,), np.uint32)
    first[:] = 0x01020304
    again = buffers.take("block", (16,), "u1")
    assert np.shares_memory(first, again)
    assert again.tolist() == [4, 3, 2, 1] * 4


def test_less_keeps_the_memory_and_more_takes_a_larger_one() -> None:
    buffers = Buffers()
    large = buffers.take("block", (10, 10), np.uint8)
    assert np.shares_memory(large, buffers.take("block", (3,), np.uint8))
    assert np.shares_memory(large, buffers.take("block", (100,), np.uint8))
    larger = buffers.take("block", (101,), np.uint8)
    assert not np.shares_memory(large, larger)
    assert np.shares_memory(larger, buffers.take("block", (50,), np.float16))


def test_names_have_memory_of_their_own() -> None:
    buffers = Buffers()
    codes, scales = buffers.take("codes", (8,), np.int8), buffers.take("scales", (8,), np.int8)
    codes[:], scales[:] = 1, 2
    assert codes.tolist() == [1] * 8
    assert scales.tolist() == [2] * 8


def test_scalars_and_empty_arrays() -> None:
    buffers = Buffers()
    assert buffers.take("scalar", (), np.float64).shape == ()
    assert buffers.take("empty", (0, 7), np.float32).shape == (0, 7)
