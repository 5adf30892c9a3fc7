"""Products of the experts that tokens choose: each as its own int8 linears would give it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from int8conv.errors import ArgumentError
from int8conv.kernels.dispatch import Mode, mixed_linear
from int8conv.kernels.torch_operator import mixed_weight
from int8conv.vllm.expert_products import NO_THRESHOLD, knows, mixed_experts

EXPERTS, HIDDEN, INNER = 4, 32, 16
COLUMNS = [2, 0, 1, 2]
CHOSEN = torch.tensor([[0, 2], [2, 1], [-1, 0], [2, 0], [-1, -1]])
"""Expert 3 is never chosen, and what is below 0 is another rank's."""


def stacks(rows: int, columns: int, seed: int) -> list[Tensor]:
    """What the ranks of vLLM hold; beyond an expert's own outlier columns, numbers that must not be read."""
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(-127, 128, (EXPERTS, rows, columns, 1), generator=random).to(torch.int8)
    index = torch.full((EXPERTS, 2), 10_000, dtype=torch.int32)
    kept = torch.full((EXPERTS, rows, 2), torch.nan).half()
    for expert, count in enumerate(COLUMNS):
        places = torch.arange(count) * 3 + expert
        index[expert, :count] = places
        codes[expert, :, places] = 0
        kept[expert, :, :count] = torch.randn(rows, count, generator=random)
    return [codes, torch.rand(EXPERTS, rows, generator=random) * 0.01, index, kept]


def one(parts: list[Tensor], expert: int, x: Tensor, mode: Mode | None) -> Tensor:
    codes, scale, index, kept = (part[expert] for part in parts)
    k = COLUMNS[expert]
    some = index[:k] if k else None
    columns = kept[:, :k].contiguous() if k else None
    return mixed_linear(x, mixed_weight(codes, scale, some, columns, None), mode=mode)


@pytest.mark.parametrize("activation", ["silu", "relu2_no_mul"])
@pytest.mark.parametrize("mode", ["w8a16", "w8a8"])
def test_the_sum_over_the_chosen_ones(activation: str, mode: Mode) -> None:
    gated = activation == "silu"
    wide, down = stacks(2 * INNER if gated else INNER, HIDDEN, 0), stacks(HIDDEN, INNER, 1)
    x = torch.randn(len(CHOSEN), HIDDEN, generator=torch.Generator().manual_seed(2))
    shares = torch.rand(CHOSEN.shape, generator=torch.Generator().manual_seed(3))
    none = [NO_THRESHOLD] * EXPERTS
    found = mixed_experts(x, CHOSEN, shares, wide, COLUMNS, none, down, COLUMNS, none, activation, mode)  # fmt: skip
    expected = torch.zeros_like(x)
    for token, chosen in enumerate(CHOSEN.tolist()):
        for place, expert in enumerate(chosen):
            if expert >= 0:
                inner = one(wide, expert, x[token : token + 1], mode)
                gate, up = inner.chunk(2, dim=-1) if gated else (inner, inner)
                inner = F.silu(gate) * up if gated else F.relu(inner).square()
                expected[token] += one(down, expert, inner, mode)[0] * shares[token, place]
    assert found[:4].std() > 0.1
    assert not found[4].any()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_what_it_knows() -> None:
    assert [knows(name) for name in ("gelu_tanh", "silu_no_mul", "swigluoai", "situ")] == [True, True, False, False]  # fmt: skip
    with pytest.raises(ArgumentError, match="mode"):
        mixed_experts(torch.ones(1, 4), CHOSEN[:1], torch.ones(1, 2), [], [], [], [], [], [], "silu", "fast")  # fmt: skip
