"""What ``footprint`` predicts, beside what generating takes on this CPU: anonymous memory at its peak, and the mapped files.

    python benchmarks/footprint.py [--layers 22] [--folder FOLDER]

Makes a checkpoint of random fp16 weights and converts it; each row is a process of its own. What Python, PyTorch and compiled
kernels take before the model is loaded is not counted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import random_checkpoint
from tabulate import tabulate

CASES = [
    (128, 1, "float32"), (512, 1, "float32"), (1024, 1, "float32"), (2048, 1, "float32"), (2048, 1, "int8"),
    (1024, 4, "float32"), (1024, 4, "int8"),
]  # fmt: skip
"""Context, batch, cache."""
NEW_TOKENS = 4


def measure(folder: Path, context: int, batch: int, kv_cache: str) -> dict[str, int]:
    """Bytes, predicted and measured, of generating the last tokens of a context."""
    import torch

    import int8conv
    from int8conv.runtime.measure.memory_use import watch_memory

    memory = watch_memory(torch.device("cpu"))
    model = int8conv.load(folder, kv_cache=kv_cache)
    generator = torch.Generator().manual_seed(0)
    shape = (batch, context - NEW_TOKENS)
    prompts = torch.randint(model.config.vocab_size, shape, generator=generator).tolist()
    model.generate_batch(prompts, max_new_tokens=NEW_TOKENS)
    used = memory.use(model.folder)
    predicted = model.predictor().at(context, batch, prompt=context - NEW_TOKENS)
    assert used.peak is not None
    assert used.mapped is not None
    return {
        "weights": sum(predicted.weights.values()), "mapped": used.mapped, "predicted": predicted.total, "peak": used.peak,
    }  # fmt: skip


def main(folder: Path, layers: int) -> None:
    source, out = folder / "source", folder / "int8"
    if not source.exists():
        random_checkpoint.write(source, layers)
    if not out.exists():
        command = ["-m", "int8conv", "convert", str(source), str(out), "--outliers", "none"]
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    rows = []
    for context, batch, kv_cache in CASES:
        case = [str(context), str(batch), kv_cache]
        command = [sys.executable, __file__, "--folder", str(out), "--measure", *case]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        sizes = [
            f"{found[name] / 1e6:.1f} MB" for name in ("weights", "mapped", "predicted", "peak")
        ]
        rows.append([context, batch, kv_cache, *sizes, f"{found['predicted'] / found['peak']:.3f}"])
    headers = ["context", "batch", "cache", "weights", "mapped", "predicted", "measured", "ratio"]
    print(tabulate(rows, headers, disable_numparse=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=random_checkpoint.CONFIG["num_hidden_layers"])
    parser.add_argument("--folder", type=Path, help="Kept; default: a temporary folder.")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        context, batch, kv_cache = arguments.measure
        print(json.dumps(measure(arguments.folder, int(context), int(batch), kv_cache)))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(arguments.folder or Path(temporary), arguments.layers)
