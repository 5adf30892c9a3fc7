"""The model of GPUs: what it reads from machine code, what it records, and what follows from rates."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.gpu import hardware, predict, sass, totals, work
from benchmarks.gpu.calls import (
    META,
    Calls,
    NotCapturableError,
    Strict,
    model_of,
    prompt_of,
    step_of,
)
from benchmarks.gpu.hardware import GPUS

CODE = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDG.E.EF.128 R4, desc[UR4][R2.64] ;
        /*0020*/              @!P0 LDG.E.U16 R9, desc[UR4][R2.64] ;
        /*0030*/                   HMMA.16816.F32 R12, R4, R8, R12 ;
        /*0040*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0050*/               @P1 BRA `(.L_x_1) ;
.L_x_2:
        /*0060*/                   LDG.E R4, desc[UR4][R2.64] ;
        /*0070*/                   FADD R4, R4, R4 ;
        /*0080*/               @P1 BRA `(.L_x_2) ;
        /*0090*/                   MEMBAR.SC.GPU ;
        /*00a0*/                   EXIT ;
.L_x_3:
        /*00b0*/                   BRA `(.L_x_3);
        /*00c0*/                   NOP;
"""


def test_loops_are_read() -> None:
    first, second = sass.loops(CODE)
    assert (first.total, second.total) == (5, 3)
    assert first.loads == {16: 1, 2: 1}
    assert first.bytes == 18
    assert first.tensor == {"HMMA.16816.F32": 1}
    assert first.barriers == 1
    assert sass.main_loops(CODE) == [first]
    assert sass.whole(CODE).total == 12
    assert sass.whole(CODE).fences == 1


def test_a_load_is_waited_for_where_its_result_is_used() -> None:
    lines = sass.loops(CODE)[1].lines
    assert predict.chain_clocks(lines, 500.0, 1) == pytest.approx(503, abs=2)
    late = [lines[0], *["        /*0065*/                   IADD3 R20, R20, 0x1, RZ ;"] * 100, *lines[1:]]  # fmt: skip
    assert predict.chain_clocks(late, 500.0, 1) == pytest.approx(503, abs=2)


def step(decoder: Any) -> Calls:
    """Of one sequence of nine positions."""
    cache = decoder.backend.cache(decoder.config, batch=1, capacity=32, dtype=decoder.dtype)
    return step_of(decoder, cache, 90, 9)


@pytest.fixture(scope="module")
def decoder() -> Any:
    return model_of("tiny", torch.float16, 0.05, layers=2)


def test_a_step_of_a_layer_is_five_launches_and_no_operator() -> None:
    one, two = (step(model_of("tiny", torch.float16, 0.05, n)) for n in (1, 2))
    kernels, others = (
        Counter(launched.kernel.__name__ for launched in calls.launches) for calls in (two, one)
    )
    assert kernels - others == {"gemv_kernel": 4, "attention_kernel": 1}
    assert others["quantize_kernel"] == 1  # the norm before a head of 16 bits
    assert len(two.operators) == len(one.operators)


def test_sixteen_bits_are_fused_as_int8_is() -> None:
    """But for two norms and the activation function, which cuBLAS cannot apply: eight kernels per layer."""
    one, two = (step(model_of("tiny", torch.float16, None, n)) for n in (1, 2))
    linears = [operator.name for operator in two.operators if operator.name in ("addmm", "linear")]  # fmt: skip
    assert len(two.found) - len(one.found) == 8
    assert sorted(linears) == ["addmm"] * 4 + ["linear"] * 5


def test_a_step_freezes_nothing_that_changes(decoder: Any) -> None:
    cache = decoder.backend.cache(decoder.config, batch=2, capacity=60, dtype=decoder.dtype)
    assert step_of(decoder, cache, 90, 5).frozen() == step_of(decoder, cache, 90, 41).frozen()
    calls = prompt_of(decoder, 90, tokens=33)
    assert "skinny_kernel" in {launched.kernel.__name__ for launched in calls.launches}
    assert [operator.query for operator in calls.operators if operator.name == "attention"] == [(1, 4, 33, 16)] * 2  # fmt: skip


@pytest.mark.parametrize(
    "use",
    [
        lambda x: torch.ones(2) + 1,
        lambda x: torch.tensor([1.0]).to(META) + x,
        lambda x: x.to("cpu"),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.sum().item(),
    ],
)
def test_what_a_graph_cannot_hold(use: Any) -> None:
    x = torch.empty(2, device=META)
    with pytest.raises((NotCapturableError, RuntimeError, NotImplementedError)), Strict(Calls(), META):  # fmt: skip
        use(x)


def test_memory_that_outlives_a_step_is_found() -> None:
    """Of what is made, only the result may stay."""
    x, calls, kept = torch.empty(8, device=META), Calls(), []
    with Strict(calls, META):
        view = x.view(2, 4)
        kept.append(x * 2)
        result = (view + 1).sum(0)
    assert calls.outliving(result) == ["mul"]
    assert calls.outliving(result[1:], kept[0].view(2, 4)) == []
    kept.clear()
    assert calls.outliving(result) == []


def test_views_and_empty_memory_launch_nothing() -> None:
    x, calls = torch.empty(2, 8, device=META), Calls()
    with Strict(calls, META):
        y = torch.empty_like(x.view(4, 4).t()[1:])
        y.add_(1)
    assert [operator.name for operator in calls.operators] == ["add_"]


def test_predictions_follow_the_rates(decoder: Any) -> None:
    """Twice the bandwidth, less time; never less than what memory takes."""
    launched = next(x for x in step(decoder).launches if x.kernel.__name__ == "gemv_kernel")  # fmt: skip
    binary: Any = predict.Binary("", 64, 0, 0, sass=CODE)
    h200 = next(gpu for gpu in GPUS if gpu.name == "H200")
    found = predict.predict(h200, launched, binary)
    slow = predict.predict(replace(h200, peak=h200.peak / 1000), launched, binary)
    done = work.work_of(launched)
    assert slow.seconds > found.seconds > totals.FIXED
    assert slow.seconds > (done.read + done.written) / h200.memory * 1000
    assert predict.resident_programs(h200, replace(binary, registers=255), 8) == 1
    assert predict.resident_programs(h200, replace(binary, shared=100_000), 8) == 2


def test_every_assumption_says_what_would_correct_it() -> None:
    for name, value, what, measured in hardware.ASSUMPTIONS:
        assert getattr(hardware, name) == value
        assert what
        assert measured
