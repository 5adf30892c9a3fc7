"""Outlier columns of ranks: together they are all of them, and padding changes no product."""

from __future__ import annotations

import torch

from int8conv.kernels import reference
from int8conv.kernels.weight import MixedWeight
from int8conv.vllm.columns import aligned, own_columns

INDEX = torch.tensor([1, 2, 9, 13, 14], dtype=torch.int32)
COLUMNS = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).half()


def test_each_column_is_on_one_rank() -> None:
    for size in (16, 8, 4):
        found = [own_columns(INDEX, COLUMNS, first, size) for first in range(0, 16, size)]
        numbers = [index + rank * size for rank, (index, _) in enumerate(found)]
        assert torch.equal(torch.cat(numbers), INDEX)
        assert torch.equal(torch.cat([columns for _, columns in found], dim=1), COLUMNS)
    index, columns = own_columns(INDEX, COLUMNS, 4, 4)
    assert len(index) == 0
    assert columns.shape == (3, 0)


def test_padding_changes_no_product() -> None:
    codes = torch.randint(-127, 128, (3, 16), generator=torch.Generator().manual_seed(1)).to(torch.int8)  # fmt: skip
    codes[:, INDEX.long()] = 0
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(2))
    index, columns = aligned(INDEX, COLUMNS)
    assert len(index) == columns.shape[1] == 16
    scale = torch.full((3,), 0.01)
    plain = MixedWeight(codes, scale, INDEX, COLUMNS)
    padded = MixedWeight(codes, scale, index, columns)
    for multiply in (reference.w8a16, reference.w8a8):
        torch.testing.assert_close(multiply(x, padded), multiply(x, plain), rtol=0, atol=1e-6)


def test_what_is_aligned_or_empty_stays() -> None:
    for count in (0, 16, 32):
        index, columns = torch.arange(count, dtype=torch.int32), torch.ones(2, count)
        found = aligned(index, columns)
        assert found[0] is index
        assert found[1] is columns
