"""Damaged and malicious inputs by the thousand: no crash, hang, traceback, unbounded memory, nothing read or written elsewhere.

    python benchmarks/hostile.py [--seed N] [--count M] [--area NAME] [--start N] [--no-scripted] [--json FILE]

Runs the scripted cases of ``hostile_cases``, then M mutations, shared among headers, indexes, manifests, configs, tokenizers,
templates, statistics, journals and pickles, through the commands that read them, and prints what came of them. A finding names its
area and number: ``--area NAME --start NUMBER --count 1`` with the same seed repeats it. Exit code 1 if there is one.

A command may take 2 s of processor time and a case 300 MiB; it may end well, or with exit code 1 and one line. Compiled CPU kernels are
switched off (they come from no input).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ |= {"INT8CONV_JIT": "0", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch  # noqa: E402  # when the environment says how
from hostile_cases import SCRIPTED  # noqa: E402
from hostile_inputs import AREAS, undamaged  # noqa: E402
from hostile_run import Area, Finding, Tally, run_batch  # noqa: E402
from preload import import_all  # noqa: E402
from tabulate import tabulate  # noqa: E402

BATCH = 500
"""Cases of a worker, if nothing ends it."""
SHARES = {
    "source header": 14, "source index": 12, "source config": 16, "header": 12, "index": 10, "manifest": 12, "config": 8,
    "generation config": 4, "tokenizer": 4, "old tokenizer": 2, "template": 2, "statistics": 5, "journal": 1, "pickle": 3,
}  # fmt: skip
"""Of the mutations; the slow kinds get fewer."""


def readable() -> list[Path]:
    """What a command may read besides its folder: imports, and what the system tells."""
    return [
        ROOT,
        *map(
            Path,
            (
                sys.prefix,
                sys.base_prefix,
                "/proc",
                "/sys",
                "/dev/zero",
                "/usr",
                "/lib",
                "/etc/ld.so.cache",
            ),
        ),
    ]


def prepare(area: Area, scratch: Path) -> Path:
    """The good input, made in a process of its own, where its commands succeed."""
    good = scratch / "good"
    good.mkdir(parents=True)
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            area.make(good)
            undamaged(area, good)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if os.waitpid(pid, 0)[1]:
        sys.exit(f"the good input of '{area.name}' is not good")
    return good


def attack(area: Area, folder: Path, seed: int, numbers: range) -> Tally:
    """An area's cases."""
    tally = Tally()
    scratch = folder / area.name.replace(" ", "-")
    good = prepare(area, scratch)
    for first in range(numbers.start, numbers.stop, BATCH):
        part = range(first, min(first + BATCH, numbers.stop))
        found = run_batch(area, good, scratch, seed, part, readable())
        tally.outcomes += found.outcomes
        tally.findings += found.findings
    return tally


def plan(count: int, start: int, names: list[str]) -> dict[str, range]:
    """The numbers of each area's cases; the scripted ones are all run, once."""
    if names:
        most = {SCRIPTED.name: len(SCRIPTED.cases)}
        stop = start + count
        return {name: range(start, min(stop, most.get(name, stop))) for name in names}
    numbers = {SCRIPTED.name: range(len(SCRIPTED.cases))}
    for name, share in SHARES.items():
        numbers[name] = range(start, start + max(1, count * share // sum(SHARES.values())))
    return numbers


def shown(findings: list[Finding]) -> list[str]:
    """One line for each kind of finding, with the first case that shows it."""
    groups = Counter((f.kind, re.sub(r"\d+", "#", f.what[:60])) for f in findings)
    lines = []
    for (kind, words), count in groups.most_common():
        first = next(
            f for f in findings if (f.kind, re.sub(r"\d+", "#", f.what[:60])) == (kind, words)
        )
        lines.append(
            f"  {count} x {kind}, first at {first.area} {first.number}: {first.what[:400]}"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--count", type=int, default=10_000, help="mutations, of all areas together"
    )
    parser.add_argument(
        "--area",
        action="append",
        choices=[*AREAS, SCRIPTED.name],
        help="COUNT cases of this one alone",
    )
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    parser.add_argument("--no-scripted", action="store_true", help="mutations alone")
    parser.add_argument("--json", type=Path, help="file for all findings")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    import_all()
    areas = {SCRIPTED.name: SCRIPTED, **AREAS}
    rows, findings, total = [], [], Counter[str]()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        planned = plan(arguments.count, arguments.start, arguments.area or [])
        if arguments.no_scripted:
            planned.pop(SCRIPTED.name, None)
        for name, numbers in planned.items():
            start = time.perf_counter()
            tally = attack(areas[name], Path(folder), arguments.seed, numbers)
            findings += tally.findings
            total += tally.outcomes
            o = tally.outcomes
            rows.append(
                [
                    name,
                    len(numbers),
                    o["good"],
                    o["refused"],
                    len(tally.findings),
                    f"{time.perf_counter() - start:.0f}",
                ]
            )
            print(
                f"{name}: {len(numbers)} cases, {len(tally.findings)} findings",
                file=sys.stderr,
                flush=True,
            )
    rows.append(
        [
            "all",
            sum(row[1] for row in rows),
            total["good"],
            total["refused"],
            len(findings),
            f"{time.perf_counter() - began:.0f}",
        ]
    )
    print(tabulate(rows, ["input", "cases", "read", "refused in a line", "findings", "s"]))
    print("\n".join([f"seed {arguments.seed}", *shown(findings)]))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(finding) for finding in findings], indent=1))
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
