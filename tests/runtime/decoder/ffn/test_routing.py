"""Routing against the formulas, token by token, in float64."""

from __future__ import annotations

import math

import pytest
import torch

from int8conv.runtime.decoder.ffn.routing import choose
from int8conv.runtime.models.config import Experts

COUNT = 8
G = torch.Generator().manual_seed(3)
LOGITS = torch.randn(7, COUNT, generator=G)
BIAS = torch.randn(COUNT, generator=G)


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize(("groups", "groups_used"), [(1, 1), (4, 2), (2, 1)])
@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("bias", [None, BIAS], ids=["no bias", "bias"])
def test_formula(
    bias: torch.Tensor | None, scoring: str, groups: int, groups_used: int, normalised: bool
) -> None:
    config = Experts(COUNT, 3, 4, normalised, scoring=scoring, groups=groups, groups_used=groups_used, scale=2.5)  # type: ignore[arg-type]  # fmt: skip
    weights, chosen = choose(LOGITS, config, bias)
    assert weights.shape == chosen.shape == (7, 3)
    for row, found, numbers in zip(LOGITS.tolist(), weights.tolist(), chosen.tolist(), strict=True):
        if scoring == "sigmoid":
            scores = [1 / (1 + math.exp(-z)) for z in row]
        else:
            scores = [math.exp(z) / sum(map(math.exp, row)) for z in row]
        preferred = [s + (0.0 if bias is None else float(bias[e])) for e, s in enumerate(scores)]
        size = COUNT // groups
        worth = [sum(sorted(preferred[g * size : (g + 1) * size])[-2:]) for g in range(groups)]
        best = sorted(range(groups), key=lambda g: worth[g])[-groups_used:]
        allowed = [e for e in range(COUNT) if e // size in best]
        expected = sorted(allowed, key=lambda e: -preferred[e])[:3]
        assert numbers == expected
        total = sum(scores[e] for e in expected) if normalised else 1.0
        assert found == pytest.approx([2.5 * scores[e] / total for e in expected], rel=1e-5)


def test_sparsemixer_chooses_one_after_the_other() -> None:
    """Each weight is a share among those near the largest one left; what was chosen first does not count for the second."""
    config = Experts(5, 2, 8, normalised=False, scoring="sparsemixer", jitter=0.1)
    logits = torch.tensor(
        [[2.0, 1.7, 1.5, -3.0, 0.0]]
    )  # within 20 %: of 2.0 the second, of 1.7 the third
    weights, chosen = choose(logits, config)
    assert chosen.tolist() == [[0, 1]]
    expected = [1 / (1 + math.exp(-0.3)), 1 / (1 + math.exp(-0.2))]
    torch.testing.assert_close(weights, torch.tensor([expected]))
    alone = choose(torch.tensor([[2.0, 1.0, -5.0, 0.5, 0.1]]), config)
    assert alone[0].tolist() == [[1.0, 1.0]]
