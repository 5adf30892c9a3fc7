"""Rotary positions and cache writes in the interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from int8conv.errors import ArgumentError
from int8conv.kernels.gpu import reference, rotary
from int8conv.runtime.decoder.quantized_cache import quantize_heads

from .tensors import HALF_STEP, HALVES


def inputs(batch: int, tokens: int, heads: int, kv_heads: int, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    g = torch.Generator().manual_seed(0)
    qkv = torch.randn(batch * tokens, (heads + 2 * kv_heads) * size, generator=g).to(dtype)
    q, k, v = qkv.split([heads * size, kv_heads * size, kv_heads * size], dim=1)
    return q, k, v


def tables(positions: int, rotated: int) -> tuple[Tensor, Tensor]:
    angles = torch.arange(positions)[:, None] * 10.0 ** -torch.arange(0, 2, 4 / rotated)
    return angles.cos().contiguous(), angles.sin().contiguous()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
@pytest.mark.parametrize(("size", "rotated"), [(16, 16), (40, 40), (64, 16), (24, 0)])
@pytest.mark.parametrize(("batch", "tokens"), [(3, 1), (2, 4)])
def test_against_the_reference(batch: int, tokens: int, size: int, rotated: int, interleaved: bool, dtype: torch.dtype) -> None:  # fmt: skip
    q, k, v = inputs(batch, tokens, 6, 2, size, dtype)
    positions = torch.stack([torch.arange(tokens) + 3 * i for i in range(batch)]).flatten().int()
    cache = torch.full((2, batch, 2, 12, size), 7.0).to(dtype)
    expected_cache = cache.clone()
    rope = tables(12, rotated) if rotated else None
    y = rotary.rotate_and_store(q, k, v, rope, positions, *cache, interleaved=interleaved)
    expected = reference.rotate_and_store(q, k, v, rope, positions, *expected_cache, interleaved=interleaved)  # fmt: skip
    largest = 1.5 * q.double().abs().max()
    step = 2 * HALF_STEP[dtype] * largest
    assert y.shape == (batch * tokens, 6, size)
    assert (y.double() - expected.double()).abs().max() <= step
    assert (cache.double() - expected_cache.double()).abs().max() <= step
    assert torch.equal(cache == 7, expected_cache == 7)  # nothing else was written
    assert torch.equal(cache[1], expected_cache[1])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
@pytest.mark.parametrize(("size", "rotated"), [(16, 16), (40, 40), (64, 16), (24, 0)])
@pytest.mark.parametrize(("batch", "tokens"), [(3, 1), (2, 4)])
def test_an_int8_cache_has_what_a_16_bit_one_would_have_rounded(batch: int, tokens: int, size: int, rotated: int, interleaved: bool, dtype: torch.dtype) -> None:  # fmt: skip
    """Bit for bit, by the CPU's rule."""
    q, k, v = inputs(batch, tokens, 6, 2, size, dtype)
    v[0, :size], v[0, 3] = (
        0,
        0,
    )  # extremes: zeros, values too small for a scale, the largest, an infinite one
    k[-1, :size] *= 1e-6
    v[-1, 3] = torch.finfo(dtype).max
    v[-1, size] = float("inf")
    positions = torch.stack([torch.arange(tokens) + 3 * i for i in range(batch)]).flatten().int()
    wide = torch.full((2, batch, 2, 12, size), 7.0).to(dtype)
    codes = torch.full(wide.shape, 77, dtype=torch.int8)
    scales = torch.full((2, batch, 2, 12, 1), 7.0).half()
    rope = tables(12, rotated) if rotated else None
    how = {"interleaved": interleaved}
    expected = rotary.rotate_and_store(q, k, v, rope, positions, *wide, **how)
    y = rotary.rotate_and_store(q, k, v, rope, positions, *codes, scales=tuple(scales), **how)
    assert torch.equal(y, expected)
    written = (wide != 7).any(-1, keepdim=True)
    rounded, each = quantize_heads(wide)
    assert torch.equal(scales, each.where(written, 7.0))
    assert torch.equal(codes, rounded.to(torch.int8).where(written, 77))
    again, by_reference = torch.full_like(codes, 77), torch.full_like(scales, 7.0)
    reference.rotate_and_store(q, k, v, None, positions, *again, scales=tuple(by_reference))
    assert torch.equal(codes[1], again[1])
    assert torch.equal(scales[1], by_reference[1])


def test_a_head_that_is_not_numbers_says_so() -> None:
    q, k, v = inputs(1, 1, 2, 2, 16, torch.float16)
    v[0, 3] = float("nan")
    codes, scales = (
        torch.full((2, 1, 2, 4, 16), 77, dtype=torch.int8),
        torch.ones(2, 1, 2, 4, 1).half(),
    )
    at = torch.tensor([1], dtype=torch.int32)
    rotary.rotate_and_store(q, k, v, tables(12, 16), at, *codes, scales=tuple(scales))
    assert scales.isnan().nonzero().tolist() == [[1, 0, 0, 1, 0]]


@pytest.mark.parametrize("position", [4, 5])
def test_a_position_past_the_capacity_is_not_written(position: int) -> None:
    """The first one past it would be the next sequence's first."""
    q, k, v = inputs(1, 1, 2, 1, 16, torch.float16)
    at = torch.tensor([position], dtype=torch.int32)
    memory = torch.full((2, 2, 1, 4, 16), 7.0).half()
    rotary.rotate_and_store(q, k, v, tables(12, 16), at, *memory[:, :1])
    assert (memory == 7).all()
    codes, scales = memory.to(torch.int8), memory[..., :1].contiguous()
    each = tuple(scales[:, :1])
    rotary.rotate_and_store(q, k, v, tables(12, 16), at, *codes[:, :1], scales=each)
    assert (codes == 7).all()
    assert (scales == 7).all()
    reference.rotate_and_store(q, k, v, tables(12, 16), at, *memory[:, :1])
    assert (memory == 7).all()


def test_length_and_angles_are_kept() -> None:
    """Scores of rotated pairs depend on the distance alone."""
    q, k, v = inputs(1, 1, 1, 1, 32, torch.float16)
    scores = []
    for shift in (0, 5):
        cache = torch.zeros(2, 1, 1, 12, 32).half()
        at = torch.tensor([2 + shift], dtype=torch.int32)
        rotary.rotate_and_store(q, k, v, tables(12, 32), at, *cache)
        y = rotary.rotate_and_store(q, k, v, tables(12, 32), at + 3, *torch.zeros_like(cache))
        scores.append((y.double()[0, 0] @ cache.double()[0, 0, 0, at.item()]).item())
    assert abs(scores[0] - scores[1]) < 0.02


def test_bad_arguments_are_named() -> None:
    q, k, v = inputs(2, 1, 2, 1, 16, torch.float16)
    cache = torch.zeros(2, 2, 1, 4, 16).half()
    at = torch.zeros(2, dtype=torch.int32)
    with pytest.raises(ArgumentError, match="shape of v"):
        rotary.rotate_and_store(q, k, v[:, :8], None, at, *cache)
    with pytest.raises(ArgumentError, match="rows of q: expected a multiple of 2, found 1"):
        rotary.rotate_and_store(q[:1], k[:1], v[:1], None, at[:1], *cache)
    with pytest.raises(ArgumentError, match="width of the tables: expected at most 8, found 16"):
        rotary.rotate_and_store(q, k, v, tables(4, 32), at, *cache)
