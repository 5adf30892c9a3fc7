"""Prompt lookup: tokens per second with and without guesses, for texts that copy from their prompt and for texts that do not.

    python benchmarks/lookup.py FOLDER [--new 128] [--runs 3]

FOLDER is a converted one, best of an instruct model. Each run generates with both, in turn; figures are medians. "passes" is the number of passes of
the model per new token; the texts are compared.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tabulate import tabulate

import int8conv
from int8conv.runtime.chat import Chat
from int8conv.runtime.model import Model
from int8conv.runtime.text.chat_template import is_in

CODE = """class Account:
    def __init__(self, owner, balance=0):
        self.owner = owner
        self.balance = balance

    def deposit(self, amount):
        if amount <= 0:
            raise ValueError("a deposit is above 0")
        self.balance += amount
        return self.balance

    def withdraw(self, amount):
        if amount > self.balance:
            raise ValueError("there is not so much")
        self.balance -= amount
        return self.balance
"""
TASKS = {
    "copy a program": f"Repeat this program exactly, without any change:\n\n```python\n{CODE}```",
    "rename in a program": f"Rename the class Account to Wallet in this program, and change nothing else:\n\n```python\n{CODE}```",
    "a story": "Tell me a story about a lighthouse keeper and a storm.",
    "an explanation": "Explain how a refrigerator works, and why it needs energy.",
}


@contextmanager
def counted(model: Model) -> Iterator[list[int]]:
    passes: list[int] = []
    forward = model.decoder.forward

    def counting(token_ids: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        passes.append(token_ids.shape[1])
        return forward(token_ids, *args, **options)

    model.decoder.forward = counting  # type: ignore[method-assign]
    try:
        yield passes
    finally:
        model.decoder.forward = forward  # type: ignore[method-assign]


def measure(model: Model, ids: list[int], new: int, lookup: bool) -> tuple[float, float, list[int]]:
    """Tokens per second behind the prompt, passes per token, tokens."""
    with counted(model) as passes, model.stream(ids, temperature=0.0, max_new_tokens=new, prompt_lookup=lookup) as stream:  # fmt: skip
        stream.step()
        began = time.perf_counter()
        while stream.step():
            pass
        seconds = time.perf_counter() - began
        found = stream.result.token_ids
    prompt = 1 + (len(ids) - 1) // 256
    return (len(found) - 1) / seconds, (len(passes) - prompt) / (len(found) - 1), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    model = int8conv.load(arguments.folder)
    model.prepare()
    rows = []
    for name, task in TASKS.items():
        ids = Chat(model).prompt(task) if is_in(model.folder) else model.token_ids(task)
        runs = [[measure(model, ids, arguments.new, lookup) for lookup in (False, True)] for _ in range(arguments.runs)]  # fmt: skip
        plain, guessed = (median(run[i][0] for run in runs) for i in (0, 1))
        same = all(run[0][2] == run[1][2] for run in runs)
        rows.append([
            name, len(runs[0][0][2]), f"{plain:.1f}", f"{guessed:.1f}", f"{median(run[1][0] / run[0][0] for run in runs):.2f}x",
            f"{runs[-1][1][1]:.2f}", "yes" if same else "no",
        ])  # fmt: skip
    print(
        f"{arguments.folder.name}, {arguments.runs} runs, {os.cpu_count()} processors, {platform.machine()}"
    )
    print(tabulate(rows, ["task", "tokens", "tok/s", "with lookup", "ratio", "passes", "same text"], disable_numparse=True))  # fmt: skip


if __name__ == "__main__":
    main()
