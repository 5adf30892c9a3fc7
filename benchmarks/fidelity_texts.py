"""Does calibration generalise? Calibrate on one kind of text, evaluate on another, with the outlier fallback and without.

    python benchmarks/fidelity_texts.py MODEL prose=A.txt code=B.py german=C.txt [--tokens 4096] [--out FILE.md]

Every pair of kinds, in W8A8. The first half of a text is calibrated on and the second evaluated on, so that a kind can
be paired with itself.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tabulate import tabulate

import int8conv
from int8conv.convert.outliers.calibrate import calibrate
from int8conv.formats.int8.stats import write_stats
from int8conv.runtime.measure.evaluate import evaluate


def main(model: Path, kinds: dict[str, Path], tokens: int, window: int, scratch: Path) -> str:
    halves: dict[str, tuple[Path, Path]] = {}
    for kind, file in kinds.items():
        text = file.read_text()
        halves[kind] = (scratch / f"{kind}-1.txt", scratch / f"{kind}-2.txt")
        halves[kind][0].write_text(text[: len(text) // 2])
        halves[kind][1].write_text(text[len(text) // 2 :])
    rows = []
    for calibrated in [*kinds, "built-in"]:
        texts = [halves[calibrated][0]] if calibrated in kinds else []
        stats = scratch / f"{calibrated}.safetensors"
        write_stats(calibrate(model, texts=texts, tokens=tokens, context=window), stats)
        folders = {}
        for tails in ("16bit", "8bit"):
            folders[tails] = scratch / f"{calibrated}-{tails}"
            int8conv.convert_checkpoint(model, folders[tails], stats=stats, heavy_tails=tails)  # type: ignore[operator]
        for evaluated in kinds:
            for tails, outlier_fallback in (("16bit", True), ("8bit", True), ("8bit", False)):
                found = evaluate(
                    folders[tails], halves[evaluated][1], against=model, window=window, tokens=tokens, outlier_fallback=outlier_fallback
                )  # fmt: skip
                assert found.against is not None and found.outlier_fallback is not None
                a, how = found.against, {"16bit": "default", "8bit": "8-bit tails"}[tails]
                rows.append(
                    [calibrated, evaluated, how, "on" if outlier_fallback else "off", f"{a.ratio:.5f}", f"{a.kl_mean:.2e}",
                     f"{a.kl_worst:.1e}", f"{a.top1:.2%}",
                     f"{found.outlier_fallback.values / max(found.scored, 1):.2f}" if outlier_fallback else "-"]
                )  # fmt: skip
                print(*rows[-1], flush=True)
    headers = ["calibrated on", "evaluated on", "heavy tails", "outlier_fallback", "ratio", "KL mean", "KL worst", "top-1",
               "caught a token"]  # fmt: skip
    return tabulate(rows, headers, "github", disable_numparse=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("kinds", nargs="+", metavar="KIND=FILE")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    named = {kind: Path(file) for kind, _, file in (k.partition("=") for k in arguments.kinds)}
    with tempfile.TemporaryDirectory() as folder:
        shown = main(arguments.model, named, arguments.tokens, arguments.window, Path(folder))
    print(shown)
    if arguments.out:
        arguments.out.write_text(shown + "\n")
