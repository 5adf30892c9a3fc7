"""Many generations in one process leave nothing behind; ``benchmarks/many_calls.py`` has 500 and the clock."""

from __future__ import annotations

import gc
from pathlib import Path

import torch

import int8conv
from benchmarks.many_calls import KINDS, calls, parts
from int8conv.runtime.generate.generation import Continuation


def alive() -> tuple[int, int]:
    """Bytes of tensors, and continuations, that something still refers to."""
    gc.collect()
    found = gc.get_objects()
    tensors = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found if type(t) is torch.Tensor}  # fmt: skip
    return sum(tensors.values()), sum(type(each) is Continuation for each in found)


def test_calls_leave_nothing_behind(example_int8: Path) -> None:
    model = int8conv.load(example_int8)
    model.end_tokens = frozenset()
    calls(model, len(KINDS), 3)
    before = alive()
    seconds, memory = calls(model, 8 * len(KINDS), 3)
    assert alive() == before
    assert before[1] == 0
    assert len(seconds) == len(memory) == 40


def test_parts_of_the_calls() -> None:
    assert parts([*map(float, range(10))], max) == [1, 3, 5, 7, 9]
