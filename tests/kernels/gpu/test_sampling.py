"""Sampling in the interpreter, against the distribution's formula."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from int8conv.errors import ArgumentError
from int8conv.kernels.gpu import reference, sampling
from int8conv.kernels.gpu.sampling import Draws

from .tensors import HALVES


def draws(batch: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Draws:  # fmt: skip
    def column(value: float, dtype: torch.dtype) -> Tensor:
        return torch.full((batch,), value, dtype=dtype)

    return Draws(
        column(temperature, torch.float32), column(top_k, torch.int32), column(top_p, torch.float32),
        column(min_p, torch.float32), torch.full((batch,), 5, dtype=torch.int64),
    )  # fmt: skip


def random_logits(batch: int, vocab: int, dtype: torch.dtype = torch.float32) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return (3 * torch.randn(batch, vocab, generator=g)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("vocab", [1, 5, 4096, 9000])
def test_greedy_takes_the_first_of_the_largest(vocab: int, dtype: torch.dtype) -> None:
    logits = random_logits(3, vocab, dtype)
    if vocab > 3:
        logits[1, [vocab - 1, vocab // 2]] = 50.0
    logits[2] = -float("inf")
    logits[2, vocab - 1] = -3.0
    found = sampling.sample(logits, draws(3, 0.0), torch.zeros(3, dtype=torch.int32))
    assert torch.equal(found, logits.float().argmax(-1))


OPTIONS = [
    {},
    {"temperature": 0.3},
    {"top_k": 7},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
    {"top_k": 1},
    {"top_p": 1e-9},
]


@triton.jit
def uniform_kernel(positions, u, seed, count, block: tl.constexpr):
    i = tl.arange(0, block)
    where = tl.load(positions + i, mask=i < count, other=0)
    tl.store(u + i, tl.rand(seed, where.to(tl.int32)), mask=i < count)


def uniform(positions: Tensor, seed: int = 5) -> Tensor:
    u = torch.full(positions.shape, float("nan"))
    uniform_kernel[(1,)](positions, u, seed, len(u), triton.next_power_of_2(len(u)))
    return u


@pytest.mark.parametrize(
    ("options", "dtype"),
    [*((options, torch.float32) for options in OPTIONS), (OPTIONS[5], torch.bfloat16)], ids=str,
)  # fmt: skip
def test_draws_invert_the_sum_of_the_distribution(options: dict[str, float], dtype: torch.dtype) -> None:  # fmt: skip
    count, vocab = 12, 60
    row, where = random_logits(1, vocab, dtype), torch.arange(count, dtype=torch.int32)
    found = sampling.sample(row.expand(count, vocab), draws(count, **options), where)
    arguments = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | options
    share = reference.kept(row[0], **arguments)
    upper = share.cumsum(0)[found]
    u = uniform(where).double()
    assert (share[found] > 0).all()
    assert (u <= upper + 1e-6).all()
    assert (u >= upper - share[found] - 1e-6).all()


def test_uniform_numbers_are_uniform() -> None:
    u = uniform(torch.arange(2000, dtype=torch.int32)).double()
    counts = torch.histc(u, 10, 0, 1)
    assert ((counts - 200) ** 2 / 200).sum() < 30  # chi-squared, 9 degrees of freedom


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_top_k_keeps_those_that_equal_the_last(dtype: torch.dtype) -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, 1.0, -1.0, 1.0, -0.0]]).to(dtype)
    where = torch.arange(24, dtype=torch.int32)
    found = sampling.sample(logits.expand(24, 7), draws(24, 10.0, top_k=2), where)
    assert set(found.tolist()) == {1, 2, 3, 5}


def test_a_large_vocabulary() -> None:
    """The last of several blocks alone is likely, and kept."""
    logits = random_logits(4, 10_000)
    logits[:, 9_990:] = 100.0
    found = sampling.sample(logits, draws(4, top_k=100, top_p=0.95), torch.arange(4))
    assert (found >= 9_990).all()


def test_a_draw_depends_on_seed_and_position_alone() -> None:
    logits = random_logits(1, 500)
    where = torch.arange(6, dtype=torch.int32)
    together = sampling.sample(logits.expand(6, 500), draws(6), where)
    alone = [sampling.sample(logits, draws(1), where[i : i + 1]).item() for i in range(6)]
    assert together.tolist() == alone
    assert len(set(alone)) > 1
    other = draws(6)
    other.seed.add_(1)
    assert sampling.sample(logits.expand(6, 500), other, where).tolist() != alone


def test_out_is_filled() -> None:
    out = torch.full((2,), -1)
    assert sampling.sample(random_logits(2, 9), draws(2, 0.0), torch.zeros(2), out=out) is out
    assert (out >= 0).all()


def test_reference_draws_what_it_keeps() -> None:
    logits = random_logits(3, 40)
    found = reference.sample(logits, draws(3, 1.0, top_k=2), torch.arange(3))
    for row, token in zip(logits, found, strict=True):
        assert row[token] >= row.topk(2).values[-1]


def test_bad_arguments_are_named() -> None:
    where = torch.zeros(2)
    with pytest.raises(ArgumentError, match="shape of logits"):
        sampling.sample(torch.zeros(2), draws(2), where)
    with pytest.raises(ArgumentError, match="dtype of logits"):
        sampling.sample(torch.zeros(2, 3).double(), draws(2), where)
    with pytest.raises(ArgumentError, match="shape of temperature"):
        sampling.sample(torch.zeros(2, 3), draws(3), where)
