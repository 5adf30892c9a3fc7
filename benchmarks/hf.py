"""Decoding through transformers beside int8conv's own runtime, on a CPU, in turns.

    python benchmarks/hf.py OUT [--new 16] [--runs 3]

A converted folder with float32 activations in W8A16, one prompt of 32 tokens, greedy; tokens per second of the new tokens
alone, on a machine that should be idle. ``OMP_NUM_THREADS`` and ``NUMBA_NUM_THREADS`` say with how many threads.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from tabulate import tabulate
from transformers import AutoModelForCausalLM, logging

import int8conv.hf
from int8conv.runtime.decoder.cache import KVCache

PROMPT = torch.arange(3, 35)[None]


def rate(generate: Callable[[int], object], new: int) -> float:
    """Tokens per second, without the prompt's time."""
    spent = []
    for count in (2, new + 2):
        start = time.perf_counter()
        generate(count)
        spent.append(time.perf_counter() - start)
    return new / (spent[1] - spent[0])


def runtime(folder: str) -> Callable[[int], object]:
    model = int8conv.load(folder, mode="w8a16")
    model.prepare()

    def generate(count: int) -> None:
        cache = KVCache(
            model.config, batch=1, capacity=PROMPT.shape[1] + count, dtype=torch.float32
        )
        token = model.decoder.forward(PROMPT, cache)[:, -1:].argmax(-1)
        for _ in range(count - 1):
            token = model.decoder.forward(token, cache).argmax(-1)

    return generate


def transformers(folder: str) -> Callable[[int], object]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    int8conv.hf.set_mode(model, "w8a16")
    # the other way to reach the length, min_new_tokens, looks at the whole vocabulary for each token
    model.generation_config.eos_token_id = None
    model.config.eos_token_id = None
    return lambda count: model.generate(PROMPT, max_new_tokens=count, do_sample=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--new", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    logging.disable_progress_bar()
    sides = {"int8conv": runtime(options.folder), "transformers": transformers(options.folder)}
    for generate in sides.values():
        generate(4)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.runs):
        for name, generate in sides.items():
            rates[name].append(rate(generate, options.new))
    ratio = median(b / a for a, b in zip(rates["int8conv"], rates["transformers"], strict=True))
    rows = [[name, f"{median(found):.1f}"] for name, found in rates.items()]
    print(f"{options.folder}, {torch.get_num_threads()} threads, {options.runs} runs")
    print(tabulate(rows, ["decode", "tok/s"], disable_numparse=True))
    print(f"transformers / int8conv {ratio:.2f}x")


if __name__ == "__main__":
    main()
