"""Real trained models against their float32 selves: int8conv as users run it, beside the methods of its peers.

    python benchmarks/real_models.py [smollm2] [gemma3] [--text KIND=FILE]... [--tokens 1024] [--only REGEX] [--vnni] [--out FILE.md]

Makes the models once (see real_checkpoints.py), converts them with the options of each row and the built-in calibration text, and
compares every row with the source in float32 over the same windows. By default the texts are Python's help topics (English), a story
(german) and argparse.py (code), all different from the calibration text. The methods of peers are simulated in float32, for attention and
FFN linears only, as int8conv leaves the head in 16 bits as well; those that look at activations run the built-in calibration text.
``--vnni`` adds int8conv's W8A8 as on a CPU with int8 dot products (VNNI): the same code, with its integer products computed in float32.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import pydoc_data.topics
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fidelity import score, shares, windows_of
from fidelity_calibrated import CALIBRATED_METHODS, CalibratedWeights, inputs_of
from fidelity_methods import BLOCK_METHODS, METHODS, MethodWeights
from real_checkpoints import PACKAGES, make_checkpoint
from tabulate import tabulate
from torch import Tensor

import int8conv
from int8conv.formats.int8.folder import open_converted
from int8conv.formats.source.checkpoint import open_checkpoint
from int8conv.kernels.cpu import integer
from int8conv.runtime.weights.weights import CheckpointWeights, ConvertedWeights, Weights

CONVERTED: dict[str, dict[str, Any]] = {
    "default": {},
    "--outlier-rule absmax": {"outlier_rule": "absmax"},
    "--rounding compensated": {"rounding": "compensated"},
    "--head int8-tied": {"head": "int8-tied"},
}
"""Name of a conversion -> its options. Each is measured in both modes."""
PEERS = BLOCK_METHODS | {
    name: METHODS[name] for name in ("vector-wise", "LLM.int8(), int8 outlier weights")
}
BFLOAT16 = "bfloat16 arithmetic"


def texts(arguments: argparse.Namespace) -> dict[str, str]:
    """Text by kind."""
    if arguments.text:
        named = (item.partition("=") for item in arguments.text)
        return {kind: Path(file).read_text() for kind, _, file in named}
    topics = pydoc_data.topics.topics
    return {
        "English": "\n".join(topics[name] for name in sorted(topics)),
        "German": Path(__file__).with_name("texts").joinpath("german.txt").read_text(),
        "code": Path(argparse.__file__).read_text(),
    }


VNNI = " with VNNI"


@contextmanager
def vnni(wanted: bool) -> Iterator[None]:
    """Linears as on a CPU with int8 dot products: sums of 256 products of codes are exact in float32."""
    before = integer.available, integer._int8_product
    if wanted:
        integer.available, integer._int8_product = lambda: True, _float_product  # type: ignore[assignment]
    try:
        yield
    finally:
        integer.available, integer._int8_product = before  # type: ignore[assignment]


def _float_product(x: Tensor, codes: Tensor) -> Tensor:
    return x.float() @ codes.float().t()


def candidates(
    source: Path, work: Path, only: re.Pattern[str], suffix: str
) -> tuple[dict[str, Weights], dict[str, dict[str, float]]]:
    """The weights of every row, and the shares of 16-bit columns of those that have any."""
    checkpoint = open_checkpoint(source)
    found: dict[str, Weights] = {}
    extra: dict[str, dict[str, float]] = {}
    modes = ("W8A8",) if suffix else ("W8A16", "W8A8")
    if only.search(BFLOAT16) and not suffix:
        found[BFLOAT16] = CheckpointWeights(checkpoint, torch.bfloat16)
    for name, method in ({} if suffix else PEERS).items():
        if only.search(name):
            found[name] = MethodWeights(checkpoint, method)
    if not suffix and (chosen := {n: m for n, m in CALIBRATED_METHODS.items() if only.search(n)}):
        inputs = inputs_of(checkpoint)
        found |= {name: CalibratedWeights(checkpoint, m, inputs) for name, m in chosen.items()}
    for name, options in CONVERTED.items():
        rows = {f"int8conv {m}{suffix}, {name}": m for m in modes}
        rows = {row: mode for row, mode in rows.items() if only.search(row)}
        if not rows:
            continue
        out = work / re.sub(r"\W+", "-", f"{source.name} {name}")
        if not out.exists():
            report = int8conv.convert_checkpoint(source, out, **options)  # type: ignore[operator]
            print(f"{source.name}, {name}: converted in {report.seconds:.1f} s", file=sys.stderr)
        for row, mode in rows.items():
            found[row] = ConvertedWeights(open_converted(out), torch.float32, mode.lower())  # type: ignore[arg-type]
            extra[row] = shares(out)
    return found, extra


def measure(model: str, arguments: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    """All rows of one model: one per method and text."""
    source = make_checkpoint(model, arguments.models)
    rows = []
    for kind, text in texts(arguments).items():
        windows = windows_of(source, text, arguments.tokens, arguments.window)
        for suffix in ("", VNNI) if arguments.vnni else ("",):
            found, extra = candidates(source, work, re.compile(arguments.only), suffix)
            with vnni(bool(suffix)):
                figures = score(source, found, windows) if found else {}
            about = {"model": model, "text": kind, "tokens": windows.numel()}
            rows += [
                about | {"method": name} | value | extra.get(name, {})
                for name, value in figures.items()
                if name != "source" or not suffix
            ]
            del found
            gc.collect()
        print(as_table(rows), file=sys.stderr, flush=True)
    return rows


def as_table(rows: list[dict[str, Any]]) -> str:
    """A line per model and method; per text, the mean KL divergence in thousandths of a nat and the perplexity ratio."""
    kinds = list(dict.fromkeys(row["text"] for row in rows))
    lines: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        lines.setdefault((row["model"], row["method"]), {})[row["text"]] = row
    shown = []
    for (model, method), found in lines.items():
        line = [model, method]
        for kind in kinds:
            row = found.get(kind)
            if row is None:
                line += ["-", "-", "-"]
            elif method == "source":
                line += ["", f"({row['perplexity']:.2f})", ""]
            else:
                line += [f"{1000 * row['kl']:.2f}", f"{row['ratio']:.4f}", f"{row['top1']:.1%}"]
        slices = next(iter(found.values())).get("slices")
        shown.append([*line, "-" if slices is None else f"{slices:.1%}"])
    headers = ["model", "method"]
    for kind in kinds:
        headers += [f"{kind}: KL/1000", "ratio", "top-1"]
    return tabulate(shown, [*headers, "16-bit slices"], "github", disable_numparse=True)


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Bars of the mean KL divergence: a panel per model, a bar per method and text."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, panels = plt.subplots(
        1, len(models), figsize=(5 * len(models) + 3, 5), squeeze=False, sharey=True, layout="constrained"
    )  # fmt: skip
    methods = [m for m in dict.fromkeys(row["method"] for row in rows) if m != "source"][::-1]
    kinds = list(dict.fromkeys(row["text"] for row in rows))
    for panel, model in zip(panels[0], models, strict=True):
        for number, kind in enumerate(kinds):
            found = {r["method"]: r["kl"] for r in rows if (r["model"], r["text"]) == (model, kind)}
            places = [i - 0.8 * (number + 0.5) / len(kinds) + 0.4 for i in range(len(methods))]
            values = [found.get(method, math.nan) for method in methods]
            panel.barh(places, values, 0.8 / len(kinds), label=kind)
        panel.set(title=model, xscale="log", xlabel="mean KL divergence from float32, nats")
        panel.set_yticks(range(len(methods)), methods, fontsize=8)
    panels[0][-1].legend()
    figure.savefig(file, dpi=100)


def main(arguments: argparse.Namespace) -> None:
    """Measure, merge with the rows of earlier runs in ``--out``, and print the table."""
    torch.manual_seed(0)
    arguments.models.mkdir(parents=True, exist_ok=True)
    saved = arguments.out.with_suffix(".json") if arguments.out else None
    rows: list[dict[str, Any]] = json.loads(saved.read_text()) if saved and saved.exists() else []
    work = arguments.work or Path(tempfile.mkdtemp())
    try:
        for model in arguments.names or PACKAGES:
            new = measure(model, arguments, work)
            keys = {(r["model"], r["method"], r["text"]) for r in new}
            rows = [r for r in rows if (r["model"], r["method"], r["text"]) not in keys] + new
            if saved:
                saved.write_text(json.dumps(rows, indent=1) + "\n")
    finally:
        if arguments.work is None:
            shutil.rmtree(work)
    rows.sort(key=lambda r: list(PACKAGES).index(r["model"]))
    print(as_table(rows))
    if arguments.out:
        arguments.out.write_text(as_table(rows) + "\n")
        plot(rows, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", metavar="MODEL", help=f"{' or '.join(PACKAGES)}; default: both."
    )
    parser.add_argument(
        "--text", action="append", metavar="KIND=FILE", help="Instead of the default texts."
    )
    parser.add_argument("--tokens", type=int, default=1024, help="Per text.")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--only", default="", metavar="REGEX", help="Rows whose name matches.")
    parser.add_argument("--vnni", action="store_true", help="Also as with int8 dot products.")
    parser.add_argument(
        "--models", type=Path, default=Path.home() / ".cache" / "int8conv-real-models"
    )
    parser.add_argument(
        "--work",
        type=Path,
        help="Folder for conversions, which are reused; default: a temporary one.",
    )
    parser.add_argument(
        "--out", type=Path, help="FILE.md; rows are merged into FILE.json next to it."
    )
    parsed = parser.parse_args()
    if unknown := set(parsed.names) - set(PACKAGES):
        parser.error(f"no such model: {', '.join(sorted(unknown))}")
    main(parsed)
