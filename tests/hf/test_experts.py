"""Experts as linears of their own: names, what can be replaced, the sum over experts, and the way back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from int8conv.hf.experts import KEEPS_EXPERTS, ExpertsPlace, Int8convExperts, split_name
from int8conv.hf.linear import Int8convLinear

pytestmark = pytest.mark.skipif(not KEEPS_EXPERTS, reason="of transformers that ask quantizers")

HIDDEN, INNER, COUNT = 48, 20, 3


class Fused(nn.Module):
    """As transformers has them."""

    def __init__(self, **features: Any) -> None:
        super().__init__()
        self.num_experts, self.has_gate, self.is_transposed = COUNT, True, False
        vars(self).update(features)
        wide, narrow = (COUNT, 2 * INNER, HIDDEN), (COUNT, HIDDEN, INNER)
        turn = self.is_transposed
        self.gate_up_proj = nn.Parameter(torch.empty(wide[0], *(wide[:0:-1] if turn else wide[1:])))
        self.down_proj = nn.Parameter(torch.empty(COUNT, *(narrow[:0:-1] if turn else narrow[1:])))
        self.act_fn = nn.SiLU()

    def _apply_gate(self, y: Tensor) -> Tensor:
        gate, up = y.chunk(2, dim=-1)
        return self.act_fn(gate) * up


def paths(*parts: str, count: int = COUNT) -> ExpertsPlace:
    return ExpertsPlace({f"file.{n}.{part}": f"{n}.{part}" for n in range(count) for part in parts})


def weight(experts: Int8convExperts, path: str) -> Tensor:
    linear = experts.get_submodule(path)
    assert isinstance(linear, Int8convLinear)
    return linear.dequantized()


def test_names() -> None:
    assert split_name("3.w1") == ("gate", 3, "{}.w1")
    assert split_name("down_proj.12") == ("down", 12, "down_proj.{}")
    assert split_name("mlp.gate_proj") == split_name("3.conv") == ("", -1, "")


def test_what_can_be_replaced() -> None:
    whole = paths("gate_proj", "up_proj", "down_proj")
    assert whole.is_whole(Fused())
    more = Fused()
    more.router = nn.Linear(2, 2)
    assert paths("gate_up_proj", "down_proj").is_whole(Fused())
    for place, module in (
        (paths("gate_proj", "up_proj", "down_proj", count=2), Fused()),
        (paths("gate_proj", "down_proj"), Fused()),
        (paths("up_proj", "down_proj"), Fused()),
        (whole, Fused(has_post_expert_norm=True)),
        (whole, Fused(is_concatenated=False)),
        (whole, more),
        (whole, nn.Linear(2, 2)),
    ):
        assert not place.is_whole(module)


@pytest.mark.parametrize("transposed", [False, True])
def test_the_sum_over_experts_and_the_way_back(transposed: bool) -> None:
    place = paths("w1", "w3", "w2")
    experts = Int8convExperts(Fused(is_transposed=transposed), place.paths.values())
    for path in place.paths.values():
        empty = experts.get_submodule(path)
        assert isinstance(empty, nn.Linear)
        linear = Int8convLinear(empty.in_features, empty.out_features, bias=False, mode="w8a16")
        linear.weight.copy_(torch.randint(-127, 128, linear.weight.shape))
        linear.weight_scale.uniform_(0.001, 0.01)
        experts.set_submodule(path, linear)
    x, used = torch.randn(5, HIDDEN), torch.tensor([[0, 2], [2, 0], [1, COUNT], [1, 2], [2, 1]])
    weights = torch.rand(5, 2)
    expected = torch.zeros(5, HIDDEN)
    for token in range(5):
        for number, share in zip(used[token].tolist(), weights[token], strict=True):
            if number < COUNT:  # the other is on another rank
                gate, up, down = (weight(experts, f"{number}.{w}") for w in ("w1", "w3", "w2"))
                inner = torch.nn.functional.silu(gate @ x[token]) * (up @ x[token])
                expected[token] += share * (down @ inner)
    torch.testing.assert_close(experts(x, used, weights), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))  # fmt: skip
    fused = experts.dense(torch.float32)
    assert fused.gate_up_proj.shape == (
        (COUNT, HIDDEN, 2 * INNER) if transposed else (COUNT, 2 * INNER, HIDDEN)
    )
    second = fused.gate_up_proj[1].T if transposed else fused.gate_up_proj[1]
    both = [weight(experts, f"1.{w}") for w in ("w1", "w3")]
    assert torch.equal(second, torch.cat(both))
