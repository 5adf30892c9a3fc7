"""Opening a checkpoint of very many tensors: time and memory beside the safetensors library, and beside parsing the JSON alone.

    python benchmarks/many_tensors.py [--tensors N] [--shards N] [--repeat N] [--commands]

Makes a source of N small tensors, named as the experts of a mixture are where several shards hold them (in one file their names have to be
short: a header has at most 100 MB), and opens it, each way in a process of its own: ``open_checkpoint``; the library's ``safe_open`` with its keys and
metadata; ``json.loads`` of headers and index. Prints the processor time and the memory that it adds, the least of the repeats, and their ratios.
``--commands``, with several shards, times ``convert --dry-run``, ``convert`` and ``inspect`` too, at N / 2 and at N tensors.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tabulate import tabulate

ROOT: Final = Path(__file__).resolve().parent.parent
_MEASURED: Final = """
import sys, time
from pathlib import Path
def most(): return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
folder = Path(sys.argv[1])
{before}
memory, began = most(), time.process_time()
{timed}
used = time.process_time() - began
print(used, most() - memory)
"""
WAYS: Final = {
    "open_checkpoint": (
        "from int8conv.formats.source.checkpoint import open_checkpoint",
        "opened = open_checkpoint(folder)",
    ),
    "safe_open": (
        "from safetensors import safe_open\nimport numpy, json",
        """kept = [json.loads(file.read_bytes()) for file in folder.glob("*.json")]
for file in sorted(folder.glob("*.safetensors")):
    with safe_open(file, "numpy") as f: kept.append((f.keys(), f.metadata()))""",
    ),
    "json.loads": (
        "import json",
        """kept = [json.loads(file.read_bytes()) for file in folder.glob("*.json")]
for file in sorted(folder.glob("*.safetensors")):
    data = file.read_bytes(); kept.append(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]))""",
    ),
}
"""What is imported before, and what is measured."""


def write_source(folder: Path, tensors: int, shards: int) -> None:
    """A source of a model that no release has: in one file every tensor has one element, in several they are experts of 32 x 32."""
    shape, nbytes = ([1], 2) if shards == 1 else ([32, 32], 2048)
    folder.mkdir()
    weight_map = {}
    for shard in range(shards):
        name = (
            "model.safetensors"
            if shards == 1
            else f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        )
        numbers = range(tensors * shard // shards, tensors * (shard + 1) // shards)
        names = [
            f"{i:x}"
            if shards == 1
            else f"model.layers.{i // 768}.mlp.experts.{i // 3 % 256}.{('gate', 'up', 'down')[i % 3]}_proj.weight"
            for i in numbers
        ]
        header: dict[str, object] = {"__metadata__": {"format": "pt"}} | {
            each: {"dtype": "F16", "shape": shape, "data_offsets": [nbytes * i, nbytes * (i + 1)]}
            for i, each in enumerate(names)
        }
        text = json.dumps(header, separators=(",", ":")).encode()
        (folder / name).write_bytes(
            struct.pack("<Q", len(text))
            + text
            + b"\0<" * (nbytes // 2 * len(names))  # of finite values
        )
        weight_map |= dict.fromkeys(names, name)
    if shards > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"model_type": "strange"}')


def measure(folder: Path, before: str, timed: str) -> tuple[float, float]:
    """Seconds of processor time and bytes."""
    program = _MEASURED.format(before=before, timed=timed)
    command = [sys.executable, "-c", program, str(folder)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    seconds, kibibytes = done.stdout.split()
    return float(seconds), 1024 * float(kibibytes)


def command_seconds(arguments: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "int8conv", *arguments],
        check=True, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return time.perf_counter() - began


def commands(scratch: Path, tensors: int, shards: int) -> dict[str, list[float]]:
    """Seconds of each command, at half the tensors and at all of them."""
    seconds: dict[str, list[float]] = {}
    for count in (tensors // 2, tensors):
        source, out = scratch / f"{count}", str(scratch / f"{count}-int8")
        write_source(source, count, shards)
        for arguments in (
            ["convert", str(source), out, "--dry-run"],
            ["convert", str(source), out, "--outliers", "none"],
            ["inspect", out],
        ):
            name = " ".join([arguments[0], *arguments[3:4]])
            seconds.setdefault(name, []).append(command_seconds(arguments))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tensors", type=int, default=1_400_000)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--commands",
        action="store_true",
        help="of experts in several shards: convert and inspect too",
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "source"
        write_source(folder, arguments.tensors, arguments.shards)
        least = {}
        for name, (before, timed) in WAYS.items():
            runs = [measure(folder, before, timed) for _ in range(arguments.repeat)]
            least[name] = tuple(map(min, zip(*runs, strict=True)))
        rows = [
            [name, f"{s:.2f}", f"{b / 1e6:.0f}", f"{least['open_checkpoint'][0] / s:.2f}x", f"{least['open_checkpoint'][1] / b:.2f}x"]
            for name, (s, b) in least.items()
        ]  # fmt: skip
        print(f"{arguments.tensors:,} tensors in {arguments.shards} files")
        print(tabulate(rows, ["", "CPU s", "MB", "time of ours / its", "memory of ours / its"]))
        if arguments.commands:
            for name, times in commands(Path(scratch), arguments.tensors, arguments.shards).items():
                print(f"{name}: {times[1]:.1f} s; of half the tensors {times[0]:.1f} s")


if __name__ == "__main__":
    main()
