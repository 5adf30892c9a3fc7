"""Linear attention with a decay: both rules against their recurrence in float64; chunks against steps over a long prompt."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from int8conv.runtime.decoder.recurrent.linear_attention import attend_linearly

G = torch.Generator().manual_seed(5)


def inputs(batch: int, heads: int, tokens: int, keys: int, values: int) -> list[Tensor]:
    """q, k, v and beta."""
    q, k = (
        normalize(torch.randn(batch, heads, tokens, keys, generator=G), dim=-1) for _ in range(2)
    )
    v = torch.randn(batch, heads, tokens, values, generator=G)
    return [q, k, v, torch.rand(batch, heads, tokens, generator=G)]


@pytest.mark.parametrize(("corrected", "bound"), [(True, 1e-5), (False, 1e-4)], ids=["delta rule", "Mamba 2"])  # fmt: skip
def test_the_rule_is_its_recurrence(corrected: bool, bound: float) -> None:
    """A state that is not empty, an odd number of tokens, strong and weak decays; uncorrected, outputs are larger."""
    q, k, v, beta = inputs(2, 3, 37, 5, 4)
    g = -torch.rand(2, 3, 37, generator=G) * torch.tensor([0.01, 1.0, 30.0])[:, None]
    state = torch.randn(2, 3, 5, 4, generator=G)
    s, expected = state.double(), []
    for t in range(37):
        s = s * g[:, :, t, None, None].double().exp()
        change = v[:, :, t].double()
        if corrected:
            change = beta[:, :, t, None] * (change - (k[:, :, t, None].double() @ s)[:, :, 0])
        s = s + k[:, :, t, :, None].double() * change[:, :, None]
        expected.append((q[:, :, t, None].double() @ s)[:, :, 0])
    for chunk in (1, 8, 64):
        found = state.clone()
        y = attend_linearly(q, k, v, g, beta if corrected else None, found, chunk)
        torch.testing.assert_close(y.double(), torch.stack(expected, 2), rtol=bound, atol=bound)
        torch.testing.assert_close(found.double(), s, rtol=bound, atol=bound)


@pytest.mark.parametrize("corrected", [True, False], ids=["delta rule", "Mamba 2"])
def test_a_long_prompt_in_chunks_is_the_same_step_by_step(corrected: bool) -> None:
    """2,000 tokens; the error of float32 does not grow with them."""
    q, k, v, beta = inputs(1, 2, 2000, 8, 8)
    g = -0.02 * torch.rand(1, 2, 2000, generator=G)
    write, states = beta if corrected else None, torch.zeros(2, 1, 2, 8, 8)
    chunks = attend_linearly(q, k, v, g, write, states[0])
    steps = attend_linearly(q, k, v, g, write, states[1], 1)
    scale = float(steps.std())
    assert (chunks - steps).abs().max() <= 2e-5 * max(scale, 1.0)
    torch.testing.assert_close(states[0], states[1], rtol=1e-5, atol=2e-5 * max(scale, 1.0))
