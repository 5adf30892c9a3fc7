"""Tokens times the experts chosen for them, in the interpreter, against float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from int8conv.errors import ArgumentError
from int8conv.kernels.gpu import experts, reference
from int8conv.kernels.gpu.experts import ExpertWeights, chosen_experts
from int8conv.kernels.weight import MixedWeight

from .tensors import HALVES, check, dense, make_tokens, make_weight

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # to infinity

CONFIG = {"block_n": 16, "block_k": 64, "num_warps": 1}
CHOSEN = torch.tensor([[2, 0], [1, 2], [2, 1]])


def make(out: int, channels: int, ks: tuple[int, ...], dtype: torch.dtype = torch.float16) -> list[MixedWeight]:  # fmt: skip
    return [make_weight(out, channels, k, dtype=dtype, seed=i) for i, k in enumerate(ks)]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("ks", [(0, 0, 0), (3, 0, 20), (0, 17, 1)], ids=str)
@pytest.mark.parametrize(("channels", "out"), [(64, 32), (40, 19)])
def test_against_float64(channels: int, out: int, ks: tuple[int, ...], dtype: torch.dtype) -> None:
    """Experts lie anywhere, and have any number of outlier columns, none in the first or in others."""
    weights = make(out, channels, ks, dtype)
    x = make_tokens(3, channels, dtype, large=20.0)
    found = chosen_experts(x, ExpertWeights.of(weights), CHOSEN.flatten(), config=CONFIG)
    for y, slot in zip(found, range(6), strict=True):
        full = dense(weights[int(CHOSEN.flatten()[slot])])
        row = x[slot // 2].double()
        check(y, full @ row, full.abs() @ row.abs())


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gated(activation: str) -> None:
    weights, x = ExpertWeights.of(make(48, 64, (2, 0, 5))), make_tokens(3, 64, torch.float16)
    args = (x, weights, CHOSEN.flatten())
    found = chosen_experts(*args, activation=activation).double()
    expected = reference.chosen_experts(*args, activation=activation).double()
    assert (found - expected).abs().max() <= 2.0**-10 * expected.abs().max()
    assert expected.abs().max() > 0.1


def test_rows_of_a_wider_matrix() -> None:
    weights, x = ExpertWeights.of(make(32, 64, (1, 1, 1))), make_tokens(3, 96, torch.float16)
    part = x[:, 16:80]
    assert torch.equal(
        chosen_experts(part, weights, CHOSEN.flatten()),
        chosen_experts(part.contiguous(), weights, CHOSEN.flatten()),
    )


def shifted(t: Tensor) -> Tensor:
    return torch.cat([t.flatten()[:1], t.flatten()])[1:].view(t.shape)


def test_what_does_not_fit() -> None:
    weights = make(32, 64, (1, 1))
    with pytest.raises(ArgumentError, match="shape of an expert"):
        ExpertWeights.of([weights[0], make_weight(16, 64, 1)])
    with pytest.raises(ArgumentError, match="dtype of outlier_weight"):
        ExpertWeights.of([weights[0], make_weight(32, 64, 1, dtype=torch.bfloat16)])
    with pytest.raises(ArgumentError, match="channels of an expert: expected a multiple of 4, found 66"):  # fmt: skip
        ExpertWeights.of([make_weight(32, 66, 1)])
    odd = replace(weights[1], codes=shifted(weights[1].codes))
    with pytest.raises(ArgumentError, match="address of codes: expected a multiple of 16"):
        ExpertWeights.of([weights[0], odd])
    table, x = ExpertWeights.of(weights), make_tokens(2, 64, torch.float16)
    for wrong in (torch.zeros(3, dtype=torch.int64), torch.zeros(2, dtype=torch.int32)):
        with pytest.raises(ArgumentError, match="chosen"):
            experts.chosen_experts(x, table, wrong)
    with pytest.raises(ArgumentError, match="x"):
        experts.chosen_experts(x[:, :32], table, torch.zeros(2, dtype=torch.int64))
