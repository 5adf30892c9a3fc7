"""Running on a CPU: load time, prefill and decode, converted against the same weights in source precision.

    python benchmarks/cpu.py [--layers 22] [--prompt 128] [--new 16] [--runs 3] [--folder FOLDER] [--only REGEX]

Makes a checkpoint of random fp16 weights, converts it, and runs each in a process of its own, in turn, each time beginning with
another. "source" is this runtime in float32, the fastest dtype of PyTorch on most CPUs; "transformers" and the peers run where
they are installed. "first s" is from the call that loads to the first token of the prompt, imports not counted. Prints medians.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import cpu_peers
import random_checkpoint
from tabulate import tabulate

OURS = "int8conv auto"
FIGURES = ("import s", "first s", "prefill tok/s", "decode tok/s", "peak MiB")


def measure(kind: str, folder: Path, prompt: int, new: int) -> list[float]:
    """Import, load and pass over the prompt, cold; then once more, and token by token, warm."""
    begin = time.perf_counter()
    peer = kind in cpu_peers.installed()
    for module in (
        cpu_peers.PEERS[kind][0] if peer else ("torch", "transformers" if kind.startswith("transformers") else "int8conv")
    ):  # fmt: skip
        importlib.import_module(module)
    imported = time.perf_counter()
    if kind.startswith("transformers"):
        step = _transformers(folder, kind.rpartition(" ")[2])
    elif peer:
        step = cpu_peers.load(kind, folder, prompt + new)
    else:
        step = _int8conv(kind, folder, prompt, new)
    step(list(range(prompt)), True)
    first = time.perf_counter()
    step([0], False)
    before = time.perf_counter()
    step(list(range(prompt)), True)
    prefilled = time.perf_counter()
    for token in range(new):
        step([token], False)
    done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [imported - begin, first - imported, prompt / (prefilled - before), new / (done - prefilled), peak]  # fmt: skip


def _int8conv(kind: str, folder: Path, prompt: int, new: int) -> cpu_peers.Step:
    import torch

    import int8conv
    from int8conv.runtime.decoder.cache import KVCache

    mode = kind.removeprefix("int8conv ") if kind != "source" else "auto"
    model = int8conv.load(folder, mode=None if mode == "auto" else mode)  # type: ignore[arg-type]
    cache = None

    def step(tokens: list[int], fresh: bool) -> object:
        nonlocal cache
        if fresh or cache is None:
            cache = KVCache(model.config, batch=1, capacity=prompt + new, dtype=torch.float32)
        return model.decoder.forward(torch.tensor([tokens]), cache, last_only=True)

    return step


def _transformers(folder: Path, dtype: str) -> cpu_peers.Step:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    return cpu_peers.transformers_step(model.eval())


def compare(folder: Path, arguments: argparse.Namespace) -> None:
    source, out = folder / "source", folder / "int8"
    if not source.exists():
        random_checkpoint.write(source, arguments.layers)
    convert = [
        sys.executable,
        "-m",
        "int8conv",
        "convert",
        str(source),
        str(out),
        "--outliers",
        "none",
    ]
    if not out.exists():
        subprocess.run(convert, check=True, stdout=subprocess.DEVNULL)
    kinds = {
        "int8conv auto": out,
        "int8conv w8a16": out,
        "int8conv w8a8": out,
        "source": source,
        "transformers float32": source,
        "transformers float16": source,
    }
    for peer in filter(re.compile(arguments.only).search, cpu_peers.installed()):
        cpu_peers.prepare(peer, source)
        kinds[peer] = source
    kinds = {kind: path for kind, path in kinds.items() if re.search(arguments.only, kind)}
    figures: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    for run in range(arguments.runs):
        order = list(kinds.items())
        start = run * 3 % len(order)  # what ran before leaves caches and memory in its state
        for kind, path in order[start:] + order[:start]:
            options = ["--prompt", str(arguments.prompt), "--new", str(arguments.new)]
            command = [sys.executable, __file__, "--measure", kind, "--folder", str(path), *options]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                figures[kind].append(json.loads(done.stdout.splitlines()[-1]))
            else:
                print(f"{kind}: {done.stderr.splitlines()[-1]}", file=sys.stderr)
    rows = [
        [
            kind,
            *(
                f"{median(column):.{2 if i < 2 else 1}f}"
                for i, column in enumerate(zip(*measured, strict=True))
            ),
            *(
                f"{median(m[i] / o[i] for m, o in zip(measured, figures[OURS], strict=False)):.2f}x"
                for i in (2, 3)
            ),
        ]
        for kind, measured in figures.items()
        if measured
    ]
    print(
        f"{arguments.layers} layers, prompt {arguments.prompt}, {arguments.new} new tokens, ",
        end="",
    )
    print(f"{os.cpu_count()} cores, {platform.machine()}, {arguments.runs} runs")
    print(tabulate(rows, ["", *FIGURES, "prefill / ours", "decode / ours"], disable_numparse=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=random_checkpoint.CONFIG["num_hidden_layers"])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--folder",
        type=Path,
        help="Kept, and used if it has source and int8; default: a temporary folder.",
    )
    parser.add_argument(
        "--only", default="", metavar="REGEX", help=f"Rows whose name matches; '{OURS}' must."
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(
            json.dumps(
                measure(arguments.measure, arguments.folder, arguments.prompt, arguments.new)
            )
        )
    else:
        with tempfile.TemporaryDirectory() as temporary:
            compare(arguments.folder or Path(temporary), arguments)
