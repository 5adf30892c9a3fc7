"""The outlier fallback's switch and counts, on a real model whose columns were left out on purpose."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import int8conv
from int8conv.kernels.weight import FallbackCounter
from int8conv.runtime.measure.fallback import fallback_report

PROMPT = torch.arange(10, 74)[None]


@pytest.fixture(scope="module")
def bare(example: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example without stored columns: the fallback alone."""
    out = tmp_path_factory.mktemp("bare") / "out"
    int8conv.convert_checkpoint(example, out, max_outliers=0)
    return out


def test_counts(bare: Path) -> None:
    model = int8conv.load(bare, mode="w8a8")
    model.logits(PROMPT)
    report = model.fallback_report()
    assert report.tokens == 64
    assert report.values == sum(sum(i.channels.values()) for i in report.inputs) > 0
    assert [i.values for i in report.used] == sorted((i.values for i in report.used), reverse=True)
    assert {i.tokens for i in report.inputs} == {64}
    assert all(i.fallback_tokens <= min(i.values, i.tokens) for i in report.inputs)
    names = {i.input for i in report.inputs}
    assert "model.layers.0.self_attn.q_proj" in names
    assert "model.layers.0.mlp.down_proj" not in names  # heavy-tailed: all in 16 bits
    assert model.fallback_report().to_json()["model.layers.0.self_attn.q_proj"]["tokens"] == 64


def test_the_switch(bare: Path, example: Path) -> None:
    source = int8conv.load(example).logits(PROMPT)
    with_net = int8conv.load(bare, mode="w8a8")
    without = int8conv.load(bare, mode="w8a8", outlier_fallback=False)
    errors = [float((m.logits(PROMPT) - source).norm()) for m in (with_net, without)]
    assert errors[0] < errors[1]
    assert without.fallback_report().inputs == ()


def test_w8a16_needs_no_net(bare: Path) -> None:
    model = int8conv.load(bare, mode="w8a16")
    model.logits(PROMPT)
    assert (model.fallback_report().tokens, model.fallback_report().values) == (0, 0)


def test_channels_stand_in_the_order_of_their_values() -> None:
    counter = FallbackCounter(6)
    caught = torch.zeros(4, 6, dtype=torch.bool)
    caught[:3, 4] = caught[0, 2] = True
    counter.add(4, caught[:3])
    counter.add(8, caught[:0])
    (found,) = fallback_report({"x": counter}).inputs
    assert (found.tokens, found.fallback_tokens, found.values) == (12, 3, 4)
    assert list(found.channels.items()) == [(4, 3), (2, 1)]
