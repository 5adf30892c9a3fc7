"""Break the code in small ways, each of which a named test has to notice.

    python benchmarks/mutants.py [NAME ...]

Each mutant is one line changed in a copy of the tree; its test runs there before and after the change. The exit code is 1 if
a test is red without the change, or green with it, or if the line is not there any more: then this list has to follow the code.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = ("int8conv", "tests", "examples", "pyproject.toml", "README.md", "docs", "benchmarks")


@dataclass(frozen=True)
class Mutant:
    """A line of a module, what it becomes, and the test that must fail then."""

    name: str
    module: str
    line: str
    becomes: str
    test: str


MUTANTS = (
    Mutant(
        "resume: any checksum of a tensor is enough", "convert/stream.py",
        "if not all(writers[name].checksum(name) == value for name, value in written):",
        "if not any(writers[name].checksum(name) == value for name, value in written):",
        "tests/convert/test_resume.py::test_each_checksum_of_a_tensor_has_to_match",
    ),
    Mutant(
        "resume: other statistics are not noticed", "convert/prepare.py",
        '"stats": None if stats is None else checksum_range(Path(stats)),', '"stats": None,',
        "tests/convert/test_resume.py::test_other_statistics_are_noticed",
    ),
    Mutant(
        "resume: a changed config is not noticed", "convert/prepare.py",
        '"config": checkpoint.config,', '"config": None,',
        "tests/convert/test_resume.py::test_a_changed_config_is_noticed",
    ),
    Mutant(
        "verify: the last row of a block is skipped", "formats/int8/verify.py",
        "codes = read_rows(linear.weight, first, last).squeeze(-1)",
        "codes = read_rows(linear.weight, first, max(first + 1, last - 1)).squeeze(-1)",
        "tests/formats/int8/test_verify.py::test_every_row_of_every_block_is_looked_at",
    ),
    Mutant(
        "generation: a finished sequence is not cleared", "runtime/generate/generation.py",
        "cache.clear(i)", "pass",
        "tests/runtime/generate/test_generation.py",
    ),
    Mutant(
        "rotary: a token at the cache's capacity is written", "kernels/gpu/rotary.py",
        "tl.where(position < capacity, D, 0)", "tl.where(position <= capacity, D, 0)",
        "tests/kernels/gpu/test_rotary.py::test_a_position_past_the_capacity_is_not_written",
    ),
    Mutant(
        "embedding: an int8 row comes without its outlier columns", "kernels/weight.py",
        "values[..., weight.outlier_index.long()] = weight.outlier_weight[rows].float()", "pass",
        "tests/kernels/test_weight.py::test_rows_have_their_outlier_columns",
    ),
    Mutant(
        "hub: patience is never renewed", "formats/hub/remote.py",
        "patience.renew()", "pass",
        "tests/formats/hub/test_remote.py::test_a_failure_after_progress_is_a_first_one",
    ),
    Mutant(
        "crossover: one number for the mode, another for the footprint", "kernels/dispatch.py",
        'return "w8a16" if tokens <= W8A16_TOKENS or',
        'return "w8a16" if tokens < W8A16_TOKENS or',
        "tests/kernels/test_dispatch.py::test_few_tokens_take_w8a16_and_many_w8a8",
    ),
    Mutant(
        "workspace: the lock of a removed one counts", "formats/int8/workspace.py",
        "if os.fstat(lock).st_nlink == 0:", "if os.fstat(lock).st_nlink < 0:",
        "tests/formats/int8/test_workspace.py::test_the_lock_of_a_removed_workspace_is_none",
    ),
)  # fmt: skip


def run(tree: Path, test: str) -> str:
    """What becomes of a test in a tree: ``green``, ``red``, or ``missing`` where it cannot be found."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", test]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    return {0: "green", 1: "red"}.get(done.returncode, "missing")


def outcome(mutant: Mutant, tree: Path) -> str:
    """``killed``, or why it is not."""
    path = tree / "int8conv" / mutant.module
    good = path.read_text()
    if good.count(mutant.line) != 1:
        return "the line is not there"
    if (before := run(tree, mutant.test)) != "green":
        return f"the test is {before} without it"
    path.write_text(good.replace(mutant.line, mutant.becomes))
    try:
        return "killed" if run(tree, mutant.test) == "red" else "SURVIVED"
    finally:
        path.write_text(good)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "names", nargs="*", help="mutants whose name has this in it; all by default"
    )
    names = parser.parse_args().names
    chosen = [m for m in MUTANTS if not names or any(name in m.name for name in names)]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for entry in COPIED:
            source = ROOT / entry
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, tree / entry)
        outcomes = []
        for mutant in chosen:
            outcomes.append(outcome(mutant, tree))
            print(f"{outcomes[-1]:<10} {mutant.name}: {mutant.test}", flush=True)
    sys.exit(outcomes != ["killed"] * len(chosen))


if __name__ == "__main__":
    main()
