"""Shipped configurations compiled ahead of time for every GPU of the table: instructions, shared memory, spills.

One variant of each configuration, for a GPU of each instruction set; ``python -m tests.kernels.gpu.shipped`` compiles every variant.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from int8conv.kernels.gpu import configs

from .shipped import ALIKE, LARGE

SHARED_BYTES = {80: 166_912, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
"""Largest shared memory of a block (CUDA C++ programming guide, technical specifications by compute capability)."""
DOT = {80: "mma.sync", 89: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma", 120: "mma.sync"}


def run_compiler(module: str, *arguments: str, **environment: str) -> list[dict[str, Any]]:
    """What a module prints in a process of its own, for in this one Triton interprets."""
    inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], env=inherited | environment, cwd=Path(__file__).parents[3],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    cache = str(tmp_path_factory.mktemp("triton"))
    return run_compiler("tests.kernels.gpu.shipped", "--subset", TRITON_CACHE_DIR=cache)


def of(compiled: list[dict[str, Any]], kernel: str) -> list[dict[str, Any]]:
    found = [c for c in compiled if c["case"]["kernel"] == kernel]
    wanted = set(configs.GENERATIONS) - (set() if kernel in LARGE else set(ALIKE))
    assert {c["case"]["capability"] for c in found} == wanted
    return found


def test_nothing_spills(compiled: list[dict[str, Any]]) -> None:
    assert [c for c in compiled if c["spilled"]] == []


def test_shared_memory_is_within_the_chips(compiled: list[dict[str, Any]]) -> None:
    assert [c for c in compiled if c["shared"] > SHARED_BYTES[c["case"]["capability"]]] == []


def test_gemm_runs_on_int8_tensor_cores(compiled: list[dict[str, Any]]) -> None:
    for c in of(compiled, "gemm"):
        assert c["int8_dots"] > 0, c
        assert c["half_dots"] > 0, c  # outlier columns and the fallback
        assert DOT[c["case"]["capability"]] in c["ptx"], c
    assert all(c["int8_dots"] > 0 for c in of(compiled, "gemm_unaligned"))


def test_operands_come_through_the_tensor_memory_accelerator(compiled: list[dict[str, Any]]) -> None:  # fmt: skip
    """Where a configuration asks for it; the rest of the kernel copies as it does without."""
    found = [c for c in compiled if c["case"]["kernel"] == "gemm TMA"]
    assert {c["case"]["capability"] for c in found} == {90, 100, 120}
    for c in found:
        assert c["bulk_copies"] > 0, c
        assert c["int8_dots"] > 0, c
        assert DOT[c["case"]["capability"]] in c["ptx"], c


@pytest.mark.parametrize("kernel", ["gemm", "skinny", "attention", "int8 attention"])
def test_operands_are_copied_asynchronously(compiled: list[dict[str, Any]], kernel: str) -> None:
    for c in of(compiled, kernel):
        assert c["copies"] + c["bulk_copies"] > 0, c
        assert c["half_dots"] > 0, c


BOUNDS = {("gemv", "fp16"): 2.0, ("gemv", "bf16"): 2.7, ("experts", "bf16"): 2.7}
"""Kernel and dtype -> most instructions of the loop per byte of weight, on every GPU."""


def test_loops_within_bounds(compiled: list[dict[str, Any]]) -> None:
    for (kernel, half), most in BOUNDS.items():
        found = [c for c in of(compiled, kernel) if c["case"]["variant"].startswith(half)]
        assert {c["case"]["capability"] for c in found} == {80, 90, 100}
        for c in found:
            assert 0 < c["per_byte"] <= most, c
            assert c["barriers"] == c["narrow_loads"] == 0, c
            assert c["loop_dots"] == ["HMMA"], c


def test_no_length_of_a_prompt_compiles_what_another_has_not() -> None:
    """Nothing but the rows of the table tells lengths and capacities apart, and from 129 tokens on not even they."""
    found = run_compiler("tests.kernels.gpu.prompt_lengths", "--tokens", "520")
    assert {row["kernel"] for row in found} >= {"gemm_kernel", "skinny_kernel", "rotary_kernel", "attention_kernel"}  # fmt: skip
    assert len(found) == len({(row["kernel"], row["constants"]) for row in found})
    assert {row["first"] for row in found} <= {1, 2, 5, 9, 17, 33, 65, 129}
