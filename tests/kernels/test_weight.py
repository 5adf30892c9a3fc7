"""The rows that an int8 embedding looks up."""

from __future__ import annotations

import pytest
import torch

from int8conv.kernels.weight import dequantized_rows

from .mixed_weights import dense, make_weight


@pytest.mark.parametrize("k", [0, 16])
def test_rows_have_their_outlier_columns(k: int) -> None:
    """Bit for bit: a code times a scale is rounded to float32, an outlier column is as stored."""
    weight = make_weight(9, 40, k)
    rows = torch.tensor([[3, 0], [8, 3]])
    found = dequantized_rows(weight, rows)
    assert found.shape == (2, 2, 40)
    assert torch.equal(found, dense(weight)[rows].float())
    if weight.outlier_index is not None and weight.outlier_weight is not None:
        stored = weight.outlier_weight[rows].float()
        assert stored.abs().min() > 0
        assert torch.equal(found[..., weight.outlier_index.long()], stored)
