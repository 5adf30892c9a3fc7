# mypy: disable-error-code="no-untyped-call, import-untyped"
"""Triton's compiler apart from launches: ahead of time, and what it says of its work; imports triton.

Triton itself tells one launch from another here, by its own keys, so that what is compiled ahead of time is what a launch finds in the
cache: for a GPU that is there with its driver, for another one with a stand-in that only names the target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from ....errors import ArgumentError
from ....kernels.gpu import launch
from ....kernels.gpu.launch import Kernel
from ...devices import Target, gpu_errors

OnCompiled = Callable[[str, float], None]
"""Called with a kernel's name and the seconds that it took, 0 if it was in the cache."""
_WARP: Final = 32


class AbsentGpu:
    """Of Triton's drivers, what is asked before a launch."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, _WARP)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> str:
        """A key of its own among those of devices."""
        return f"sm_{self._target.arch}, absent"

    def get_current_stream(self, device: object) -> int:
        return 0


class AheadOfTime:
    """A ``launch.Compiler`` that hands each new kernel to other threads."""

    def __init__(self, capability: int) -> None:
        self.capability = capability
        self._kernels: dict[int, object] = {}
        """Each once, by address."""

    def compile(self, kernel: Kernel, *args: object, **meta: object) -> None:
        """Compile a kernel, if none of the same form has been."""
        compiled = kernel.warmup(*args, grid=(1,), **meta)
        self._kernels[id(compiled)] = compiled

    @property
    def count(self) -> int:
        """The number of kernels so far."""
        return len(self._kernels)

    def prepare_starts(self) -> None:
        """Load the kernels on the current GPU, for which some releases of Triton compile a few lines of C for each signature."""
        for compiled in self._kernels.values():
            finished: Any = compiled
            if isinstance(finished, triton.FutureKernel):
                finished = finished.result()
            finished._init_handles()


@contextmanager
def ahead_of_time(target: Target, jobs: int, *, ignore_errors: bool = False) -> Iterator[AheadOfTime]:  # fmt: skip
    """Launches within the block are compiled instead, by ``jobs`` threads, as nearly all the work is done outside of Python; when it
    ends, all of them are.

    Args:
        target: a GPU that is PyTorch's current one, or one that need not be here.
        jobs: number of threads.
        ignore_errors: leave kernels that cannot be compiled, or loaded, to those who launch them.

    Raises:
        ArgumentError: Triton interprets.
        DeviceError: a kernel cannot be compiled.
    """
    if launch.INTERPRETED:
        raise ArgumentError("TRITON_INTERPRET", expected="unset, as nothing is compiled then", found="1")  # fmt: skip
    compiler, before = AheadOfTime(target.capability), driver._active
    token = launch.compiler.set(compiler)
    with ExitStack() as left, gpu_errors(f"sm_{target.capability}"):
        left.callback(launch.compiler.reset, token)
        if target.device is None:
            left.callback(driver.set_active, before)
            driver.set_active(AbsentGpu(target.capability))
        with (
            ThreadPoolExecutor(jobs) as pool,
            triton.AsyncCompileMode(pool, ignore_errors=ignore_errors),
        ):
            yield compiler
        if target.device is not None and not ignore_errors:
            compiler.prepare_starts()


@contextmanager
def listening(on_compiled: OnCompiled) -> Iterator[None]:
    """Hear of every kernel that Triton compiles or finds in its cache within the block."""

    def listener(*, metadata: Mapping[str, object], times: triton.knobs.CompileTimes, cache_hit: bool, **_rest: object) -> None:  # fmt: skip
        on_compiled(str(metadata["name"]), 0.0 if cache_hit else times.total / 1e6)

    knobs = triton.knobs.compilation
    before = knobs.listener
    knobs.listener = listener
    try:
        yield
    finally:
        knobs.listener = before


def cache_folder() -> str:
    """Where Triton keeps what it has compiled."""
    return str(triton.knobs.cache.dir)
