"""What is compiled ahead of time is what runs, by Triton's own keys; in a process of its own, as in this one Triton interprets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import triton

from int8conv.errors import ArgumentError, UnsupportedModelError
from int8conv.kernels.gpu import configs, launch
from int8conv.runtime.backends.gpu import compiling
from int8conv.runtime.backends.gpu import warm as warming
from int8conv.runtime.backends.gpu.warm import lengths, warm
from int8conv.runtime.devices import Target

from ....checkpoints import write_checkpoint
from ....kernels.gpu.test_compile import run_compiler

GPU = Target(90, None)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    cache = str(tmp_path_factory.mktemp("triton"))
    (found,) = run_compiler("tests.runtime.backends.gpu.warmed_kernels", TRITON_CACHE_DIR=cache)
    return found


KERNELS = {"attention_kernel", "quantize_kernel", "rotary_kernel", "sampling_kernel"}
LINEARS = {
    "llama": {"gemv_kernel", "skinny_kernel", "gemm_kernel"}, "mixtral": {"gemv_kernel", "skinny_kernel", "experts_kernel"},
    "gpt2": {"gemm_kernel"}, "gemma2, a source": set(),
}  # fmt: skip


@pytest.mark.parametrize("name", LINEARS)
def test_everything_that_runs_has_been_compiled(found: dict[str, Any], name: str) -> None:
    """Loading and running a model asks Triton for no kernel that ``warm`` has not compiled for it."""
    assert {kernel for kernel, _ in found[name]["launched"]} >= KERNELS | LINEARS[name]
    assert found[name]["lacking None"] == []


def test_the_comparison_finds_what_is_lacking(found: dict[str, Any]) -> None:
    """In another dtype, almost everything."""
    lacking = {kernel for kernel, _ in found["llama"]["lacking bfloat16"]}
    assert lacking >= (KERNELS - {"sampling_kernel"}) | LINEARS["llama"]


def test_a_kernel_is_compiled_once(found: dict[str, Any]) -> None:
    """Two numbers of tokens are one kernel, and a second run finds it in the cache."""
    assert found["compiled"] == [["quantize_kernel", True], ["quantize_kernel", False]]


def test_lengths_are_on_both_sides_of_every_bound() -> None:
    for capability in configs.GENERATIONS:
        assert {1, 2, 8, 9, 16, 17, 64, 65, 2048} <= set(lengths(capability))
        assert set(lengths(capability)) >= configs.token_bounds(capability)
        assert max(lengths(capability)) == 2048


def test_nothing_is_compiled_where_triton_interprets(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source")
    with pytest.raises(ArgumentError, match="TRITON_INTERPRET: expected unset"):
        warm(source, GPU)
    assert launch.compiler.get() is None
    with pytest.raises(ArgumentError, match="mode applies to converted folders only"):
        warm(source, GPU, mode="w8a8")


def test_an_error_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise UnsupportedModelError("its attention runs on a CPU only")

    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(warming, "launch_everything", refuse)
    source = write_checkpoint(tmp_path / "source")
    before = compiling.driver._active
    with pytest.raises(UnsupportedModelError, match="its attention runs on a CPU only"):
        warm(source, GPU)
    assert launch.compiler.get() is None
    assert compiling.driver._active is before
    assert triton.knobs.compilation.listener is None
