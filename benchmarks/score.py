"""What a shared prefix saves: four continuations of one prompt, scored together, beside one of them, and beside logits of everything.

python benchmarks/score.py OUT [--tokens 384]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import int8conv


def median(run: Callable[[], object], runs: int) -> float:
    """Seconds, after one run that does not count."""
    run()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--tokens", type=int, default=384, help="of the prefix")
    parser.add_argument("--mode", default="w8a8")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    model = int8conv.load(options.path, mode=options.mode)
    generator = torch.Generator().manual_seed(0)
    count = model.config.vocab_size
    prefix = torch.randint(count, (options.tokens,), generator=generator).tolist()
    choices = torch.randint(count, (4, 4), generator=generator).tolist()
    one = median(lambda: model.score([(prefix, choices[0])]), options.runs)
    four = median(lambda: model.score([(prefix, choice) for choice in choices]), options.runs)
    rows = torch.tensor([prefix + choice for choice in choices])
    everything = median(lambda: [model.logits(row[None]) for row in rows], options.runs)
    print(f"one continuation of {options.tokens} tokens: {1000 * one:.0f} ms")
    print(f"four continuations of them: {1000 * four:.0f} ms, {four / one:.2f}x")
    print(
        f"logits of all positions, four times: {1000 * everything:.0f} ms, {everything / one:.2f}x"
    )


if __name__ == "__main__":
    main()
