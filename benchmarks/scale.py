"""What large models would take: converting them, and their memory by rank. No weights are needed, only configs (``benchmarks/shapes.json``).

    python benchmarks/scale.py [--rate 1.68] [--vram 80GB] [--context 8192]

The converter's dry run reads headers of files that have holes in place of weights. ``--rate`` is GB of the source per second, as
``benchmarks/convert.py`` measures it; the memory of a rank is that of ``footprint --tensor-parallel N --device cuda``.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tabulate import tabulate

from int8conv.cli.output import parse_size, size
from int8conv.convert.options import ConvertOptions
from int8conv.convert.preview import preview
from int8conv.errors import ArgumentError
from int8conv.formats.safetensors.header import TensorInfo, build_header
from int8conv.runtime.measure.footprint import open_predictor
from int8conv.runtime.measure.footprint_weights import parameter_count
from int8conv.runtime.models.architecture import read_architecture

SHAPES: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("shapes.json").read_text())
RANKS = (1, 2, 4, 8, 16, 32)
SHARD_BYTES = 5_000_000_000
USED = 0.9
"""Fraction of a GPU's memory that vLLM takes."""


def write_holes(folder: Path, config: dict[str, Any]) -> None:
    """The source with headers, and holes for the weights."""
    (folder / "config.json").write_text(json.dumps(config))
    weight_map = {}
    for number, infos in enumerate(_shards(config)):
        name = f"model-{number + 1:05}.safetensors"
        header = build_header(infos, {"format": "pt"}, alignment=8)
        with (folder / name).open("wb") as file:
            file.write(header)
            file.truncate(len(header) + infos[-1].end)
        weight_map |= {info.name: name for info in infos}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _shards(config: dict[str, Any]) -> Iterator[list[TensorInfo]]:
    infos: list[TensorInfo] = []
    position = 0
    for module in read_architecture(config, ()).modules:
        tensors = [("weight", module.shape[::-1] if module.transposed else module.shape)]
        tensors += [("bias", module.shape[:1])] if module.bias else []
        for kind, shape in tensors:
            nbytes = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
            if infos and position + nbytes > SHARD_BYTES:
                yield infos
                infos, position = [], 0
            name = module.tensor_name(kind)
            infos.append(TensorInfo(name, "BF16", shape, position, position + nbytes))
            position += nbytes
    yield infos


def convert_row(name: str, rate: float) -> list[str]:
    """What a dry run says, in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--dry-run", name], check=True, capture_output=True, text=True)  # fmt: skip
    found = json.loads(done.stdout)
    hours = found["bytes_in"] / (rate * 1e9) / 3600
    return [
        name, f"{found['parameters'] / 1e9:.0f}", size(found["bytes_in"]), size(found["bytes_out"]), str(found["shards"]),
        str(found["tensors"]), f"{60 * hours:.0f} min", size(found["calibration_bytes"]), f"{found['seconds']:.1f} s", size(found["peak"]),
    ]  # fmt: skip


def dry_run(name: str) -> dict[str, Any]:
    config = SHAPES[name]
    with tempfile.TemporaryDirectory() as folder:
        write_holes(Path(folder), config)
        start = time.perf_counter()
        plan = preview(folder, Path(folder) / "out", ConvertOptions())
        seconds = time.perf_counter() - start
    return {
        "parameters": parameter_count(read_architecture(config, ())), "bytes_in": plan.bytes_in, "bytes_out": plan.bytes_out,
        "shards": plan.shards, "tensors": len(plan.tensors), "calibration_bytes": plan.calibration_bytes, "seconds": seconds,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }  # fmt: skip


def rank_rows(name: str, vram: int, context: int) -> list[list[str]]:
    """Memory by rank, up to the first number of ranks at which it fits."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(SHAPES[name]))
        for ranks in RANKS:
            try:
                predictor = open_predictor(config, device="cuda", tensor_parallel=ranks)
            except ArgumentError as error:
                rows.append([name, str(ranks), error.problem, "", "", ""])
                continue
            longest = min(context, predictor.config.max_positions)
            found = predictor.at(longest, 1)
            most = predictor.largest_batch(int(USED * vram), longest)
            rows.append([
                name, str(ranks), size(sum(found.weights.values())), size(found.weights_16bit), size(found.kv_cache),
                str(most) if most else "does not fit",
            ])  # fmt: skip
            if most >= 8:
                break
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=1.68)
    parser.add_argument("--vram", type=parse_size, default=80_000_000_000)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--dry-run", metavar="NAME", help="only this, as JSON")
    arguments = parser.parse_args()
    if arguments.dry_run:
        print(json.dumps(dry_run(arguments.dry_run)))
        return
    print(tabulate(
        [convert_row(name, arguments.rate) for name in SHAPES],
        headers=["", "billions", "source", "OUT at most", "files", "tensors", f"at {arguments.rate} GB/s", "calibration", "dry run", "its memory"],
    ))  # fmt: skip
    print()
    print(tabulate(
        [row for name in SHAPES for row in rank_rows(name, arguments.vram, arguments.context)],
        headers=["", "ranks", "weights", "in 16 bits", "a sequence's cache", "sequences that fit"],
    ))  # fmt: skip


if __name__ == "__main__":
    main()
