"""GPT-2's activation: another module, the same function."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN

from int8conv.hf.activations import use_operators


def test_the_tanh_form_becomes_an_operator() -> None:
    model: Any = nn.ModuleDict(
        {"mlp": nn.ModuleDict({"act": ACT2FN["gelu_new"], "other": nn.ReLU()})}
    )
    x = torch.linspace(-6, 6, 101)
    before = model.mlp.act(x)
    use_operators(model.eval())
    found = model.mlp.act
    assert torch.equal(found(x), nn.functional.gelu(x, approximate="tanh"))
    torch.testing.assert_close(found(x), before, rtol=1e-6, atol=1e-6)
    assert not found.training
    assert type(model.mlp.other) is nn.ReLU
