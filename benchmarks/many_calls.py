"""Many generations in one process: time per call and memory must not grow.

    python benchmarks/many_calls.py FOLDER [--calls 500] [--new 8]

Calls ``generate`` with prompts of several lengths, options of several kinds and no session, as a service would. Prints, for each fifth of the calls,
the median time of a call and resident memory.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from tabulate import tabulate

import int8conv
from int8conv.runtime.generate.options import GenerateOptions
from int8conv.runtime.model import Model

KINDS: list[GenerateOptions] = [
    {}, {"temperature": 1.0, "seed": 1, "top_p": 0.9}, {"repetition_penalty": 1.1, "stop": ["never"]}, {"logprobs": True, "top_logprobs": 3},
    {"prompt_lookup": True},
]  # fmt: skip
PARTS = 5


def resident() -> int:
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def calls(model: Model, count: int, new: int) -> tuple[list[float], list[int]]:
    """Seconds of each call, and resident memory after it."""
    seconds, memory = [], []
    for i in range(count):
        prompt = [5 + (7 * i + j) % 50 for j in range(4 + i % 13)]
        began = time.perf_counter()
        model.generate(prompt, max_new_tokens=new, **KINDS[i % len(KINDS)])
        seconds.append(time.perf_counter() - began)
        memory.append(resident())
    return seconds, memory


def parts(values: list[float], of: Callable[[list[float]], float]) -> list[float]:
    size = len(values) // PARTS
    return [of(values[i * size : (i + 1) * size]) for i in range(PARTS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--new", type=int, default=8)
    arguments = parser.parse_args()
    model = int8conv.load(arguments.folder)
    model.end_tokens = frozenset()
    calls(model, 10, arguments.new)
    gc.collect()
    seconds, memory = calls(model, arguments.calls, arguments.new)
    rows = zip(parts(seconds, median), parts([*map(float, memory)], max), strict=True)
    size = arguments.calls // PARTS
    shown = [
        [f"{i * size + 1} to {(i + 1) * size}", f"{1000 * time:.1f}", f"{most / 2**20:.1f}"]
        for i, (time, most) in enumerate(rows)
    ]
    print(tabulate(shown, ["calls", "median ms", "resident MiB"], disable_numparse=True))


if __name__ == "__main__":
    main()
