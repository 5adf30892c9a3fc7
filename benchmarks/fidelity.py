"""Fidelity of int8 methods: the LLM.int8() paper's table, on models with and without outlier features.

    python benchmarks/fidelity.py MODEL... --text EVAL.txt --calibration CALIB.txt [--out benchmarks/results/fidelity]

For each model and magnitude: put outliers in (see inject_outliers.py; 1 leaves the model as it is), run every method of the
paper (simulated), bitsandbytes where --peer-python has it, and int8conv itself (converted with statistics of CALIB.txt), all over the
same windows of EVAL.txt. Writes OUT.json, OUT.md and OUT.png.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fidelity_methods import METHODS, MethodWeights, one_layer
from inject_outliers import inject
from tabulate import tabulate
from torch import Tensor

import int8conv
from int8conv.convert.outliers.calibrate import calibrate
from int8conv.formats.int8.folder import open_converted
from int8conv.formats.int8.stats import write_stats
from int8conv.formats.int8.summary import inspect_folder
from int8conv.formats.source.checkpoint import open_checkpoint
from int8conv.runtime.measure.fallback import fallback_report
from int8conv.runtime.measure.windows import disjoint_windows, leading_tokens
from int8conv.runtime.models.architecture import read_architecture
from int8conv.runtime.text.tokenizer import Tokenizer
from int8conv.runtime.weights.streaming import BlockStream
from int8conv.runtime.weights.weights import CheckpointWeights, ConvertedWeights, Weights

OURS: dict[str, tuple[dict[str, Any], str, bool]] = {
    "int8conv W8A8": ({}, "w8a8", True),
    "int8conv W8A8, heavy tails in 8 bits": ({"heavy_tails": "8bit"}, "w8a8", True),
    "int8conv W8A8, no fallback": ({"heavy_tails": "8bit"}, "w8a8", False),
    "int8conv W8A8, fallback alone": ({"max_outliers": 0.0}, "w8a8", True),
    "int8conv W8A16": ({}, "w8a16", True),
    "int8conv W8A16, no columns": ({"outliers": "none"}, "w8a16", True),
}
"""Options of convert, mode, fallback."""
BITSANDBYTES = "bitsandbytes"


def windows_of(folder: Path, text: str, tokens: int, window: int) -> Tensor:
    """Token ids ``[windows, window]`` from the start of a text, each window behind BOS if the tokenizer puts it before prompts."""
    tokenizer = Tokenizer.load(folder)
    ids = torch.tensor(tokenizer.encode(text, special=False)[:tokens])
    return torch.stack(list(disjoint_windows(ids, window, leading_tokens(tokenizer))))


@torch.inference_mode()
def score(
    folder: Path, candidates: dict[str, Weights], windows: Tensor
) -> dict[str, dict[str, float]]:
    """Every candidate against the source, block by block."""
    checkpoint = open_checkpoint(folder)
    architecture = read_architecture(checkpoint.config, checkpoint.tensors)
    everything: dict[str, Weights] = {"source": CheckpointWeights(checkpoint, torch.float32)}
    everything |= candidates
    streams = {n: BlockStream(architecture, w, windows.unbind()) for n, w in everything.items()}
    for layer in range(architecture.config.num_layers):
        for stream in streams.values():
            stream.advance(layer)
    outputs = {name: stream.output() for name, stream in streams.items()}
    sums = {name: [0.0, 0.0, 0.0] for name in streams}
    for number, window in enumerate(windows):
        for name, stream in streams.items():
            q = F.log_softmax(outputs[name](stream.hidden[number])[0, :-1].float(), dim=-1)
            if name == "source":
                p = q
            sums[name][0] -= float(q.gather(1, window[1:, None]).double().sum())
            sums[name][1] += float((p.exp() * (p - q)).double().sum())
            sums[name][2] += float((p.argmax(-1) == q.argmax(-1)).sum())
    count = windows.shape[0] * (windows.shape[1] - 1)
    base = sums["source"][0]
    return {
        name: {"perplexity": math.exp(nll / count), "ratio": math.exp((nll - base) / count),
               "kl": kl / count, "top1": same / count}
        for name, (nll, kl, same) in sums.items()
    }  # fmt: skip


def shares(folder: Path) -> dict[str, float]:
    """Of the bytes of int8 linears and what belongs to them, those in 16-bit columns; columns of the widest share."""
    converted = open_converted(folder)
    sizes = {row.label: row.nbytes for row in inspect_folder(converted).kinds}
    slices = sizes.get("outlier columns", 0)
    rest = sum(sizes.get(k, 0) for k in ("int8 weights", "row scales", "outlier indices"))
    return {
        "slices": slices / (slices + rest),
        "columns": max(group.outliers for group in converted.manifest.inputs),
        "inputs_16bit": sum(group.threshold == 0 for group in converted.manifest.inputs)
        / len(converted.manifest.inputs),
    }


def bitsandbytes(
    python: str, folder: Path, windows: Tensor, scratch: Path
) -> dict[str, float] | str:
    """Its figures, or why there are none."""
    file = scratch / "windows.npy"
    np.save(file, windows.numpy())
    script = Path(__file__).with_name("fidelity_bitsandbytes.py")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [python, str(script), str(folder), str(file)],
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no message"])[-1]
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure(
    model: Path, magnitude: float, arguments: argparse.Namespace, scratch: Path
) -> list[dict[str, Any]]:
    """Rows of one model at one magnitude."""
    folder = model
    if magnitude != 1:
        folder = scratch / "source"
        inject(model, folder, magnitude, arguments.channels)

    def wanted(name: str) -> bool:
        return re.search(arguments.only, name) is not None

    windows = windows_of(folder, arguments.text.read_text(), arguments.tokens, arguments.window)
    checkpoint = open_checkpoint(folder)
    stats = scratch / "stats.safetensors"
    write_stats(
        calibrate(folder, texts=[arguments.calibration], tokens=arguments.calibration_tokens),
        stats,
    )
    candidates: dict[str, Weights] = {
        name: MethodWeights(checkpoint, method) for name, method in METHODS.items() if wanted(name)
    }
    extra: dict[str, dict[str, float]] = {}
    for number, (name, (options, mode, outlier_fallback)) in enumerate(OURS.items()):
        if not wanted(name):
            continue
        out = scratch / f"int8-{number}"
        more = {} if options.get("outliers") == "none" else {"stats": stats}
        int8conv.convert_checkpoint(folder, out, **options, **more)  # type: ignore[operator]
        candidates[name] = ConvertedWeights(
            open_converted(out), torch.float32, mode, outlier_fallback=outlier_fallback
        )  # type: ignore[arg-type]
        extra[name] = shares(out)
    figures: dict[str, Any] = score(folder, candidates, windows)
    for name, weights in candidates.items():
        if isinstance(weights, ConvertedWeights):
            extra[name]["caught"] = fallback_report(weights.counters).values
    peer = (
        bitsandbytes(arguments.peer_python, folder, windows, scratch)
        if wanted(BITSANDBYTES)
        else "not asked for"
    )
    if isinstance(peer, str):
        print(f"{BITSANDBYTES}: not measured: {peer}", file=sys.stderr)
    else:
        figures[BITSANDBYTES] = peer
    about = {
        "model": model.name,
        "magnitude": magnitude,
        "scored": windows.shape[0] * (windows.shape[1] - 1),
    }
    return [
        about | {"method": name} | found | extra.get(name, {}) for name, found in figures.items()
    ]


def as_table(rows: list[dict[str, Any]]) -> str:
    def cell(row: dict[str, Any], key: str, form: str) -> str:
        return format(row[key], form) if key in row else "-"

    shown = [
        [r["model"], f"{r['magnitude']:g}", r["method"], f"{r['perplexity']:.3f}", f"{r['ratio']:.5f}",
         f"{r['kl']:.2e}", f"{r['top1']:.2%}", cell(r, "slices", ".1%"), cell(r, "columns", "d"),
         cell(r, "inputs_16bit", ".0%"), cell(r, "caught", ",d")]
        for r in rows
    ]  # fmt: skip
    headers = ["model", "magnitude", "method", "perplexity", "ratio", "KL mean", "top-1", "16-bit slices",
               "columns at most", "inputs in 16 bits", "fallback: values"]  # fmt: skip
    return tabulate(shown, headers, "github", disable_numparse=True)


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Perplexity and KL divergence against magnitude, a line a method."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    models = list(dict.fromkeys(r["model"] for r in rows))
    shown = [m for m in dict.fromkeys(r["method"] for r in rows) if m != "source"]
    figure, panels = plt.subplots(
        2, len(models), figsize=(5.6 * len(models) + 3.4, 9), squeeze=False, layout="constrained"
    )
    values: list[tuple[str, Callable[[dict[str, Any]], float]]] = [
        ("perplexity against the source's: |ratio - 1|", lambda r: max(abs(r["ratio"] - 1), 1e-5)),
        ("mean KL divergence from the source, nats", lambda r: r["kl"]),
    ]
    for line, (label, value) in zip(panels, values, strict=True):
        for panel, model in zip(line, models, strict=True):
            for number, method in enumerate(shown):
                points = [(r["magnitude"], value(r)) for r in rows
                          if (r["model"], r["method"]) == (model, method)]  # fmt: skip
                ours = method.startswith("int8conv")
                panel.plot(
                    *zip(*points, strict=True), "-" if ours else "--", marker="osD^v<>PX"[number % 9], ms=5,
                    color=f"C{number % 10}", label=method, lw=2.6 if method == "int8conv W8A8" else 1.2,
                )  # fmt: skip
            magnitudes = sorted({r["magnitude"] for r in rows})
            panel.set(
                xscale="log",
                yscale="log",
                title=model,
                xlabel="factor of the injected outlier channels",
            )
            panel.set_xticks(magnitudes, [f"{m:g}" for m in magnitudes])
            panel.minorticks_off()
        line[0].set_ylabel(label)
    for panel in panels[0]:
        panel.axhline(1e-3, color="grey", lw=0.8)
        panel.annotate("0.1 %", (1, 1e-3), xycoords=("axes fraction", "data"), color="grey", fontsize=8,
                       ha="right", va="bottom")  # fmt: skip
    panels[0][-1].legend(bbox_to_anchor=(1.02, 1), loc="upper left", fontsize=8)
    figure.savefig(file, dpi=100)


def main(arguments: argparse.Namespace) -> None:
    rows: list[dict[str, Any]] = []
    layer = one_layer()
    for model in arguments.models:
        for magnitude in arguments.magnitudes:
            with tempfile.TemporaryDirectory() as scratch:
                found = measure(model, magnitude, arguments, Path(scratch))
            rows += found
            print(as_table(found), flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}", "torch": torch.__version__,
        "int8conv": int8conv.__version__, "window": arguments.window, "text": arguments.text.name,
        "calibration": arguments.calibration.name, "calibration_tokens": arguments.calibration_tokens,
        "channels": arguments.channels,
    }  # fmt: skip
    errors = tabulate([[k, f"{v:.3%}"] for k, v in layer.items()],
                      ["one layer, 6 channels of magnitude 20 to 60", "relative RMS error"], "github")  # fmt: skip
    text = f"{json.dumps(about)}\n\n{as_table(rows)}\n\n{errors}\n"
    arguments.out.with_suffix(".md").write_text(text)
    value = {"about": about, "rows": rows, "one_layer": layer}
    arguments.out.with_suffix(".json").write_text(json.dumps(value, indent=1) + "\n")
    print(errors)
    if find_matplotlib():
        plot(rows, arguments.out.with_suffix(".png"))
    else:
        print("matplotlib is not installed: no plot", file=sys.stderr)


def find_matplotlib() -> Callable[..., object] | None:
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        return None
    return plt.plot


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--text", type=Path, required=True, help="To evaluate on.")
    parser.add_argument("--calibration", type=Path, required=True, help="Text to calibrate on.")
    parser.add_argument("--calibration-tokens", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=24576)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--magnitudes", type=float, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--channels", type=int, default=6)
    parser.add_argument(
        "--peer-python", default=sys.executable, help="An interpreter with bitsandbytes."
    )
    parser.add_argument("--only", default="", metavar="REGEX", help="Methods whose name matches.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fidelity"))
    main(parser.parse_args())
