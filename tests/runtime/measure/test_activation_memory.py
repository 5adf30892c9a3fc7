"""The predictor counts with the sizes that the runtime works with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from int8conv.kernels.cpu import integer
from int8conv.kernels.crossovers import TOKENS_AT_ONCE
from int8conv.kernels.dispatch import mode_for
from int8conv.runtime.backends import torch_attention
from int8conv.runtime.decoder import working_sizes
from int8conv.runtime.generate import prefill
from int8conv.runtime.measure import activation_memory
from int8conv.runtime.measure.activation_memory import Pass
from int8conv.runtime.models.architecture import read_architecture

from ...checkpoints import LLAMA

PASS = Pass(
    read_architecture(LLAMA, ()).config, "cpu", tokens=1, positions=64, batch=1, item=4,
    narrow_cache=False, quantized=True, mode=None,
)  # fmt: skip


@pytest.mark.parametrize("tokens", [1, 16, 17, 200])
def test_the_mode_is_that_of_the_linears(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three digits per activation in W8A16, none in W8A8: what a linear needs shows which of them is meant.

    On a processor with VNNI; the linears of others need less.
    """
    monkeypatch.setattr(integer, "available", lambda: True)
    found = replace(PASS, tokens=tokens)
    assert found.peak() == replace(found, mode=mode_for(tokens)).peak()
    other = "w8a8" if mode_for(tokens) == "w8a16" else "w8a16"
    assert found.peak() != replace(found, mode=other).peak()


def test_linears_take_parts_of_a_prompt() -> None:
    """Beyond the tokens that they take at once, what they need stays the same."""
    needs = [PASS._linear(n, 64, 64) for n in (TOKENS_AT_ONCE - 1, TOKENS_AT_ONCE, TOKENS_AT_ONCE + 1)]  # fmt: skip
    assert needs[0] < needs[1] == needs[2]


def test_sizes_stand_in_one_place() -> None:
    assert activation_memory.PREFILL_TOKENS is prefill.PREFILL_TOKENS is working_sizes.PREFILL_TOKENS  # fmt: skip
    for name in ("SCORES_AT_ONCE", "WIDENED_AT_ONCE"):
        shared = getattr(working_sizes, name)
        assert getattr(activation_memory, name) == getattr(torch_attention, name) == shared
