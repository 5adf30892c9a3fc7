"""What each rule for outlier columns costs in bytes and gains in fidelity: how the default of ``convert`` was chosen.

python benchmarks/fidelity_rules.py SOURCE... --text EVAL.txt --calibration CALIB.txt [--tokens 8192] [--out FILE.md]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from tabulate import tabulate

import int8conv
from int8conv.convert.outliers.calibrate import calibrate
from int8conv.formats.int8.stats import write_stats
from int8conv.runtime.measure.evaluate import evaluate

RULES: dict[str, dict[str, Any]] = {
    "--outliers none": {"outliers": "none"},
    "--outliers data-free": {"outliers": "data-free"},
    "--max-outliers 0 (fallback alone)": {"max_outliers": 0.0},
    "--outlier-rule paper": {"outlier_rule": "paper"},
    "--outlier-rule paper --heavy-tails 8bit": {"outlier_rule": "paper", "heavy_tails": "8bit"},
    "--outlier-rule absmax": {"outlier_rule": "absmax"},
    "default": {},
    "--outlier-rule absmax --heavy-tails 8bit": {"outlier_rule": "absmax", "heavy_tails": "8bit"},
    "--max-outliers 0.1": {"max_outliers": 0.1},
    "--max-outliers 0.3": {"max_outliers": 0.3},
}


def main(arguments: argparse.Namespace, scratch: Path) -> str:
    rows = []
    for source in arguments.sources:
        stats = scratch / "stats"
        write_stats(calibrate(source, texts=[arguments.calibration], tokens=4096), stats)
        for name, options in RULES.items():
            out = scratch / "out"
            more = {} if "outliers" in options else {"stats": stats}
            report = int8conv.convert_checkpoint(source, out, force=out.exists(), **options, **more)  # type: ignore[operator]
            row = [source.name, name, f"{report.ratio:.3f}x", report.outlier_columns]
            for mode in ("w8a8", "w8a16"):
                found = evaluate(
                    out, arguments.text, against=source, mode=mode, window=256, tokens=arguments.tokens  # type: ignore[arg-type]
                ).against  # fmt: skip
                assert found is not None
                row += [f"{found.ratio:.5f}", f"{found.kl_mean:.2e}", f"{found.top1:.2%}"]
            print(*row, flush=True)
            rows.append(row)
    headers = [
        "source",
        "options",
        "bytes",
        "columns",
        "W8A8 ratio",
        "KL",
        "top-1",
        "W8A16 ratio",
        "KL",
        "top-1",
    ]
    return tabulate(rows, headers, "github", disable_numparse=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", type=Path, nargs="+")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--out", type=Path)
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shown = main(parsed, Path(folder))
    print(shown)
    if parsed.out:
        parsed.out.write_text(shown + "\n")
