"""Checkpoints as people have them, and what has to become of each, through the command line.

    python benchmarks/cases.py --cases DIR [--only NAME] [--keep FOLDER] [-v]

DIR has scripts that write a checkpoint each: ``python DIR/NAME.py FOLDER [ARGUMENTS]``, run from the root of a clone. Each checkpoint is
converted, and goes through ``footprint``; what comes out goes through ``inspect --against``, ``inspect --verify`` and ``generate``. Every command
is a process of its own with a limit of processor time and of memory. ``cases_expected`` says what is right: an exit code and words, or what
the folder has to hold. Prints a table and a total; exit code 1 if one is wrong, or a script has no row.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cases_expected import EXAMPLE, TABLE, Case, Result
from tabulate import tabulate

ROOT = Path(__file__).parents[1]
CPU_SECONDS = 120
"""Of one command; most take 1 to 10."""
WALL_SECONDS = 900
"""Of one that waits, or shares the machine."""
ADDRESSES = 16 << 30
"""Of one command's address space: what goes wrong stops here."""


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    """Negative: the signal that ended it."""
    stdout: str
    stderr: str
    seconds: float
    """Of processor time."""
    peak_mib: float

    @property
    def errors(self) -> list[str]:
        """Lines on stderr but notes."""
        lines = self.stderr.splitlines()
        return [line for line in lines if line.strip() and not line.startswith("int8conv: note:")]


@dataclass
class Row:
    """What came of a case."""

    name: str
    done: dict[str, Done] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def cell(self, command: str) -> str:
        return str(self.done[command].code) if command in self.done else "-"


def run(*command: str | bytes | Path, env: Mapping[str, str] | None = None) -> Done:
    """Run a command to its end, or to its limits."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"} | (env or {})  # fmt: skip
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            preexec_fn=_limit,
        )  # fmt: skip
        code, usage = _ended(process)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="backslashreplace"))
    return Done(code, *texts, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))


def _ended(process: subprocess.Popen[bytes]) -> tuple[int, resource.struct_rusage]:
    until = time.monotonic() + WALL_SECONDS
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode, usage
        if time.monotonic() > until:
            process.kill()
            until += WALL_SECONDS
        time.sleep(0.02)


def int8conv(*arguments: str | bytes | Path, env: Mapping[str, str] | None = None) -> Done:
    return run(sys.executable, "-m", "int8conv", *arguments, env=env)


def judge(case: Case, cases: Path, work: Path) -> Row:
    """Make a case's input, run the commands, and compare with what is right."""
    row = Row(case.name)
    source, out = work / "source", work / "int8"
    for folder in (source, out):
        shutil.rmtree(folder, ignore_errors=True)
    made = run(sys.executable, cases / f"{case.script}.py", source, *case.arguments)
    if made.code:
        row.wrong.append(f"the script failed: {made.stderr.strip().splitlines()[-1:]}")
        return row
    if case.model_type:
        config = source / "config.json"
        config.write_text(
            json.dumps(json.loads(config.read_text()) | {"model_type": case.model_type})
        )
    given: Path | bytes = ROOT / EXAMPLE if case.preload else source
    if case.suffix:
        given = os.fsencode(source) + case.suffix
    env = {"LD_PRELOAD": str(source / case.preload)} if case.preload else {}
    env |= {"FLOCK_ERRNO": "38"}
    try:
        _judge(case, row, given, out, env)
    finally:
        if isinstance(given, bytes):
            shutil.rmtree(given, ignore_errors=True)
    return row


def _judge(case: Case, row: Row, source: Path | bytes, out: Path, env: Mapping[str, str]) -> None:
    converted = row.done["convert"] = int8conv("convert", source, out, env=env)
    row.wrong += _said("convert", converted, case.refused)
    row.wrong += [
        f"convert does not say /{words}/" for words in case.notes if not re.search(words, converted.stderr)
    ]  # fmt: skip
    if converted.peak_mib > case.peak_mib:
        row.wrong.append(f"convert took {converted.peak_mib:.0f} MiB of {case.peak_mib}")
    footprint = row.done["footprint"] = int8conv("footprint", source, env=env)
    refused = case.refused if "footprint" in case.refuses else None
    row.wrong += _said("footprint", footprint, refused)
    row.wrong += [
        f"footprint does not say /{words}/" for words in case.footprint
        if not re.search(words, footprint.stdout + footprint.stderr)
    ]  # fmt: skip
    if converted.code:
        if os.path.lexists(out):
            row.wrong.append("convert left an output behind")
        return
    row.done["against"] = int8conv("inspect", out, "--against", source, "--min-sqnr", "25", env=env)
    row.wrong += _said("inspect --against", row.done["against"], None)
    row.done["verify"] = int8conv("inspect", out, "--verify", env=env)
    row.wrong += _said("inspect --verify", row.done["verify"], None)
    row.done["generate"] = int8conv("generate", out, "-p", "A vector", "-n", "4", env=env)
    row.wrong += _said("generate", row.done["generate"], case.generate)
    for holds in case.holds:
        try:
            problem = holds(Result(Path(os.fsdecode(source)), out))
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:
            row.wrong.append(problem)


def _said(what: str, done: Done, refused: str | None) -> Iterator[str]:
    """What is wrong with an exit code, or with what was said."""
    if "Traceback" in done.stderr or done.code < 0 or done.code not in (0, 1):
        yield f"{what}: exit code {done.code}: {' | '.join(done.stderr.splitlines()[-2:])[:300]}"
    elif done.code != (refused is not None):
        said = " | ".join(done.errors)[-300:] or "it worked"
        yield f"{what}: exit code {done.code}: {said}"
    elif refused is not None:
        if len(done.errors) != 1:
            yield f"{what}: {len(done.errors)} lines on stderr"
        if not re.search(refused, done.stderr):
            yield f"{what}: not /{refused}/: {' | '.join(done.errors)[-300:]}"


def show(rows: Sequence[Row]) -> None:
    commands = ("convert", "footprint", "against", "verify", "generate")
    table = [
        [
            row.name, *(row.cell(command) for command in commands),
            f"{sum(done.seconds for done in row.done.values()):.0f}",
            f"{max((done.peak_mib for done in row.done.values()), default=0):.0f}",
            "wrong" if row.wrong else "right",
        ]
        for row in rows
    ]  # fmt: skip
    print(tabulate(table, ["case", *commands, "cpu s", "peak MiB", ""], disable_numparse=True))
    for row in rows:
        for problem in row.wrong:
            print(f"{row.name}: {problem}")
    wrong = sum(bool(row.wrong) for row in rows)
    print(f"\n{len(rows)} cases: {len(rows) - wrong} right, {wrong} wrong")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=Path, required=True, help="Folder of scripts.")
    parser.add_argument("--only", default="", help="Cases whose name has this in it.")
    parser.add_argument("--keep", type=Path, help="Folder to work in; default: a temporary one.")
    parser.add_argument("-v", action="store_true", help="Show what each command said.")
    arguments = parser.parse_args()
    cases = arguments.cases.resolve()
    scripts = {path.stem for path in cases.glob("[!_]*.py")}
    chosen = [case for case in TABLE if arguments.only in case.name]
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for case in chosen:
            if case.script in scripts:
                rows.append(judge(case, cases, arguments.keep or Path(temporary)))
                print(f"{case.name}: {'; '.join(rows[-1].wrong) or 'right'}", flush=True)
                for command, done in rows[-1].done.items() if arguments.v else ():
                    print(f"--- {command}\n{done.stdout}{done.stderr}")
            else:
                rows.append(Row(case.name, wrong=["no such script"]))
    unknown = scripts - {case.script for case in TABLE}
    rows += [
        Row(name, wrong=["no row in the table"])
        for name in sorted(unknown)
        if arguments.only in name
    ]
    show(rows)
    return 1 if any(row.wrong for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
