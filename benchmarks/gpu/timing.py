"""Time of a launch: a CUDA graph of many, replayed; off a GPU one run, which rehearses and measures nothing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

REPEATS = 7
REPLAY_SECONDS = 0.01
"""A graph holds at least so much work, but no more than ``MOST_ROUNDS`` times all calls."""
MOST_ROUNDS = 20
compile_only = False
"""Set where nothing is to be measured."""


def seconds(calls: Sequence[Callable[[], object]], device: torch.device) -> float:
    """Median time of a call. Several calls on different data, in turn, keep the L2 cache from helping."""
    if device.type != "cuda" or compile_only:
        started = time.perf_counter()
        for call in calls:
            call()
        return (time.perf_counter() - started) / len(calls)
    rounds = _warmed_up(calls)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()
    times = [_elapsed(graph.replay) for _ in range(REPEATS)]
    return statistics.median(times) / rounds / len(calls)


def _warmed_up(calls: Sequence[Callable[[], object]]) -> int:
    """Compile, run once more, and say how often to repeat."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
        once = _elapsed(lambda: [call() for call in calls])
    torch.cuda.current_stream().wait_stream(side)
    return max(1, min(MOST_ROUNDS, round(REPLAY_SECONDS / max(once, 1e-6))))


def _elapsed(run: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def now(device: torch.device) -> float:
    """The time in seconds, once the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def read_bandwidth(device: torch.device, nbytes: int) -> float:
    """Bytes per second that PyTorch's sum reads: what kernels that write next to nothing are compared with."""
    source = torch.zeros(nbytes // 4, dtype=torch.float32, device=device)
    return nbytes / seconds([lambda: source.sum()], device)


def copy_bandwidth(device: torch.device, nbytes: int) -> float:
    """Bytes read and written a second by a copy on the device: what memory-bound kernels are compared with."""
    source = torch.empty(nbytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * nbytes / seconds([lambda: target.copy_(source)], device)
