"""The time of a launch on a GPU that is not there, from its machine code.

A program's pass through its main loop takes issue slots, tensor cores, and bytes from memory and L2; and, alone, a *chain*: what one
warp needs if every load takes ``LATENCY``, found by stepping through the loop's instructions in order until one needs a register
that is still being loaded (or a copy that is waited for). Outside of the loop a program takes issue slots as well, and, alone, ``DEPENDENT``
clocks per instruction, its barriers, and ``CHAIN`` dependent accesses to L2 before and after. A core with R programs for n passes needs

    max(R * issue, R * n * tensor, R * n * bytes / share of bandwidth, n * chain + alone)

Programs run in waves of R per core; the last one has fewer. ``NODE`` comes on top, or ``EARLY`` if the kernel waits on the GPU for the one
before (programmatic dependent launch), so that its first programs need no ``START`` either. ``hardware.ASSUMPTIONS`` has the numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tests.kernels.gpu.compiling import Binary, Recorded

from . import hardware as H
from .hardware import Gpu
from .sass import Code, loops, main_loops, whole
from .work import Work, work_of

_LOAD = re.compile(r"\bLDG\S*\s+R(\d+),")
_WAITED = ("HGMMA", "IGMMA", "UTC")
"""Tensor core instructions that all of a program's warps wait for at the end of a pass."""
_NORM_ACCESSES = 2
"""Dependent accesses to L2 more before the loop: x for its moments, and what has been written."""
_JOIN_ACCESSES = 2
"""The same after it: the parts' maxima, and their outputs."""
_REGISTER = re.compile(r"\bR(\d+)\b")


@dataclass(frozen=True)
class Prediction:
    """Of one launch."""

    kernel: str
    seconds: float
    bound: str
    """What takes longest in the loop: issue, tensor, memory, cache, latency; or launch."""
    bytes: float
    instructions: float | None
    """Per byte of weight or cache in the loop."""
    registers: int
    resident: int
    """Programs per core."""


def resident_programs(gpu: Gpu, binary: Binary, warps: int) -> int:
    """How many programs a core holds at once."""
    registers = -(-max(binary.registers, 16) // 8) * 8 * 32 * warps
    limits = [65536 // registers, gpu.warps // warps, gpu.blocks]
    if binary.shared:
        limits.append(gpu.shared // (binary.shared + 1024))
    return max(1, min(limits))


def chain_clocks(lines: Sequence[str], latency: float, stages: int) -> float:
    """Clocks of one pass of a warp alone, in the steady state, if a load takes ``latency`` clocks."""
    asynchronous = any("LDGSTS" in line or "UTMALDG" in line for line in lines)
    now, before, ready = 0.0, 0.0, dict[str, float]()
    for _ in range(2):
        before = now
        for line in lines:
            load = _LOAD.search(line)
            registers = _REGISTER.findall(line)
            for register in registers:
                now = max(now, ready.pop(register, now))
            now += 1
            if load:
                width = 4 if ".128" in line else 2 if ".64" in line else 1
                for i in range(width):
                    ready[str(int(load[1]) + i)] = now + latency
            if "BAR." in line:
                now += H.BARRIER
    own = now - before
    return max(own, latency / max(stages - 1, 1)) if asynchronous else own


def predict(gpu: Gpu, launched: Recorded, binary: Binary, context: int = 1024) -> Prediction:
    """Seconds of a launch, alone in a CUDA graph."""
    work, warps = work_of(launched, context), launched.meta["num_warps"]
    found = main_loops(binary.sass) if work.trips else []
    loop = _sum(found)
    resident = resident_programs(gpu, binary, warps)
    everything = whole(binary.sass)
    outside = everything.total - loop.total + _repeats(binary.sass, work)
    around = outside * warps / 4
    early = bool(launched.meta.get("PDL"))
    node = H.EARLY if early else H.NODE
    fixed = node + 2 * H.CHAIN * H.CACHED_LATENCY
    memory = (work.read + work.written) / gpu.memory
    waves = work.programs / (resident * gpu.cores)
    if not found:
        issue = work.programs * around / gpu.cores / gpu.clock
        seconds = max(memory, issue, work.cached / gpu.cache)
        bound = "launch" if seconds < fixed else "memory" if seconds == memory else "issue"
        return Prediction(launched.kernel.__name__, fixed + seconds, bound, work.read + work.written, None, binary.registers, resident)  # fmt: skip
    latency = H.LATENCY if work.trip_bytes else H.CACHED_LATENCY
    chain = chain_clocks(loop.lines, latency * gpu.clock, launched.meta["num_stages"]) / len(found)
    costs = _costs(gpu, work, loop.slots(gpu.fp32) / len(found), warps)
    if any(op.startswith(_WAITED) for op in loop.ops):  # a program alone waits, then adds the sums
        chain = max(chain, costs["issue"] + costs["tensor"])
    alone = outside * H.DEPENDENT + (everything.barriers - loop.barriers) * H.BARRIER
    chained = (
        2 * H.CHAIN
        + (_NORM_ACCESSES if work.repeated else 0)
        + (_JOIN_ACCESSES if work.after else 0)
    )
    alone += chained * H.CACHED_LATENCY * gpu.clock + H.START + work.after / H.ALONE
    full, left = divmod(work.programs, resident * gpu.cores)
    clocks = full * _wave(gpu, costs, work.trips, resident, chain, alone, around)
    if left:
        clocks += _wave(gpu, costs, work.trips, math.ceil(left / gpu.cores), chain, alone, around, min(left, gpu.cores))  # fmt: skip
    clocks -= H.START if early else 0
    seconds = max(clocks / gpu.clock, memory, work.cached / gpu.cache)
    parts = {name: value * work.programs * work.trips / gpu.cores / gpu.clock for name, value in costs.items()}  # fmt: skip
    parts |= {"memory": memory, "cache": work.cached / gpu.cache, "latency": max(waves, 1) * work.trips * chain / gpu.clock}  # fmt: skip
    bound = max(parts, key=lambda name: parts[name])
    share = work.trip_bytes / (32 * warps)
    return Prediction(
        launched.kernel.__name__, node + seconds, bound, work.read + work.written,
        loop.total / len(found) / share if share else None, binary.registers, resident,
    )  # fmt: skip


def _repeats(sass: str, work: Work) -> float:
    """Instructions of a norm's loops in all of their passes but the first, which is counted as what it is."""
    main = {code.lines for code in main_loops(sass)}
    others = [
        code for code in loops(sass) if code.lines not in main and not code.tensor and code.bytes
    ]
    return max(work.repeated - 1, 0) * sum(code.total for code in others)


def _sum(found: list[Code]) -> Code:
    """Several loops, of which a program runs one after the other."""
    return Code.of([line for code in found for line in code.lines])


def _costs(gpu: Gpu, work: Work, slots: float, warps: int) -> dict[str, float]:
    """Clocks of a core per program and pass."""
    rate = (gpu.int8 if work.int8 else gpu.half) * H.TENSOR_SHARE
    return {
        "issue": slots * warps / 4,
        "tensor": work.trip_products / rate,
        "memory": work.trip_bytes * gpu.cores / gpu.memory * gpu.clock,
    }


def _wave(
    gpu: Gpu, costs: dict[str, float], trips: float, resident: int, chain: float, alone: float, around: float, busy: int | None = None
) -> float:  # fmt: skip
    """Clocks of ``resident`` programs per core from begin to end; ``busy``: cores that have any.

    ``alone``: what a program takes outside of its loop if nothing else runs; ``around``: its issue slots there.
    """
    share = 1.0 if busy is None else busy / gpu.cores
    least = costs["memory"] * gpu.memory / gpu.cores / gpu.clock / H.ALONE
    memory = max(costs["memory"] * share, least)
    return max(
        resident * (trips * costs["issue"] + around), resident * trips * costs["tensor"], resident * trips * memory, trips * chain + alone,
    )  # fmt: skip
