"""Fixtures of the tests of the runtime on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.gpu.interpreter import interpret_quickly

CPU = torch.device("cpu")
interpret_quickly()

_SMALL = {
    "attention": {"splits": 2},
    "skinny": {"block_n": 256, "split": 1},
    "skinny_unaligned": {"block_n": 256, "split": 1},
    "gemv": {"block_n": 64, "block_k": 64, "num_warps": 1},
}


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launch configurations for shapes this small, as the interpreter's time goes by programs; those of the table have tests
    of their own."""
    from int8conv.kernels.gpu import attention, configs, experts, gemv, skinny

    def choose(kernel: str, capability: int, **shape: int) -> configs.Config:
        return {**configs.choose(kernel, capability, **shape), **_SMALL.get(kernel, {})}

    for module in (attention, experts, gemv, skinny):
        monkeypatch.setattr(module, "choose", choose)


@pytest.fixture
def formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels' formulas in their place, many times as fast; the kernels are held to these by tests of their own.

    Rows with gaps are refused as kernels refuse them.
    """
    from int8conv.kernels.gpu import linear, reference
    from int8conv.runtime.backends.gpu import attention, backend, experts

    for module in (linear, attention, backend, experts):
        for name in ("apply", "quantize", "gemm", "w8a16", "chosen_experts", "attend", "rotate_and_store"):  # fmt: skip
            if hasattr(module, name):
                monkeypatch.setattr(module, name, _on_rows(getattr(reference, name)))


def _on_rows(formula: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: Any, *arguments: Any, **options: Any) -> Any:
        assert not isinstance(x, torch.Tensor) or x.stride(-1) == 1
        return formula(x, *arguments, **options)

    return run


@pytest.fixture
def gpu_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """``device="cuda"`` is the CPU, with the kernels of a GPU in the interpreter."""
    from int8conv.runtime import loader
    from int8conv.runtime.devices import Placement
    from int8conv.runtime.measure import evaluate

    for module in (evaluate, loader):
        monkeypatch.setattr(module, "find_placement", lambda device: Placement(device, CPU))
