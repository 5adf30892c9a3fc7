"""Triton's compiler apart from launches, with stand-ins; what it really compiles is in test_warm.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from triton.backends.compiler import GPUTarget

from int8conv.errors import ArgumentError
from int8conv.kernels.gpu import launch
from int8conv.runtime.backends.gpu import compiling
from int8conv.runtime.devices import Target


def test_a_gpu_that_is_absent_is_told_from_those_that_are_there() -> None:
    gpu = compiling.AbsentGpu(90)
    assert gpu.get_current_target() == GPUTarget("cuda", 90, 32)
    assert gpu.get_current_device() != compiling.AbsentGpu(100).get_current_device()


def test_nothing_is_compiled_in_the_interpreter() -> None:
    with (
        pytest.raises(ArgumentError, match="TRITON_INTERPRET: expected unset"),
        compiling.ahead_of_time(Target(90, None), 1),
    ):
        raise AssertionError
    assert launch.compiler.get() is None


def test_kernels_are_loaded_on_a_gpu_that_is_there() -> None:
    """Where some releases of Triton compile what starts them."""

    class Kernel:
        loaded = 0

        def warmup(self, *args: object, **meta: object) -> Kernel:
            return self

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            raise AssertionError("it ran")

        def _init_handles(self) -> None:
            self.loaded += 1

    kernel = Kernel()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "INTERPRETED", False)
        with compiling.ahead_of_time(Target(90, torch.device("cuda", 0)), 1) as compiler:
            for _ in range(2):
                launch.launch(kernel, (1,), 1, BLOCK=2)
            launch.launch(kernel, (0,), 1)
        assert (compiler.count, kernel.loaded) == (1, 1)
        with compiling.ahead_of_time(Target(90, torch.device("cuda", 0)), 1, ignore_errors=True):
            launch.launch(kernel, (1,), 1)
    assert kernel.loaded == 1  # who launches it will see
