"""Cases one after the other in forked workers, which may crash, hang or take memory without harm to the campaign.

A worker runs a batch in one process. What it opens, starts and removes is watched by an audit hook, its address space is limited,
and what it prints goes to files. The parent looks at its processor time and at how it ends.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from int8conv.formats.int8.names import is_plain_file_name

CPU_SECONDS: Final = 2.0
"""Of a command; a good one takes hundredths."""
WALL_SECONDS: Final = 90.0
"""Of a case that waits: for a FIFO, for a lock."""
MEMORY: Final = 300 << 20
"""That a case may add to what is resident."""
ADDRESSES: Final = 8 << 30
"""That a worker may add to its address space, so that what goes wrong stops here."""
FILE_SIZE: Final = 1 << 30
"""That a command may write."""

COMMANDS: Final = {
    "open", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.mkdir", "os.rename", "os.remove",
    "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod", "shutil.rmtree", "socket.connect",
}  # fmt: skip
"""Events of ``sys.audit`` by which a process reaches out of itself."""


class Area(Protocol):
    """A kind of input."""

    name: str

    def make(self, folder: Path) -> None:
        """Put a good one into an empty folder."""

    def damage(self, folder: Path, rng: random.Random, number: int) -> None:
        """Put the case's input into a folder that holds the good one, or the last case's."""

    def commands(self, folder: Path, number: int) -> list[tuple[list[str], str]]:
        """What is run on it: arguments of ``int8conv``, and its stdin."""


@dataclass(frozen=True)
class Finding:
    """What must not happen."""

    area: str
    number: int
    kind: str
    """crash, hang, traceback, memory, elsewhere, or output (an error of more than a line, or control characters)."""
    what: str


@dataclass
class Tally:
    """What came of an area's cases."""

    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)


class Watch:
    """Within a worker: what a case touches outside its folder."""

    def __init__(self, folder: Path, readable: Sequence[Path]) -> None:
        self.folder = folder.resolve()
        self._readable = {path.resolve() for path in readable}
        self.inside = False
        self.trespasses: list[str] = []
        sys.dont_write_bytecode = True  # a module's own file is none of an input's
        sys.addaudithook(self._audit)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.inside or event not in COMMANDS:
            return
        if event == "subprocess.Popen":
            command = args[1] if len(args) > 1 else args
            if not any("int8conv.runtime.text" in str(part) for part in command):
                self.trespasses.append(f"{event} {command}")
            return
        if event == "open":
            path, _, flags = args
            if path is None or isinstance(path, int):
                return
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            follow = not (isinstance(flags, int) and flags & os.O_NOFOLLOW)
            if not follow and is_plain_file_name(os.fsdecode(path)):
                return  # in a folder that was opened before, and looked at here then: the event does not say which
            where = self._place(path, None, follow)
            allowed = where == Path(os.devnull) or self._within(where)
            if not allowed and (writes or not self._readable & {where, *where.parents}):
                self.trespasses.append(f"{event} {path!r} {'to write' if writes else 'to read'}")
            return
        paths = [part for part in args if isinstance(part, str | bytes | os.PathLike)]
        descriptors = [part for part in args if isinstance(part, int) and part > 2]
        for path in paths:
            if not self._within(
                self._place(path, descriptors, follow=False)
            ) and not self._is_cache(path):
                self.trespasses.append(f"{event} {args}")

    def _place(self, path: Any, descriptors: list[int] | None, follow: bool) -> Path:
        """Where a path leads; relative to a folder's descriptor, if there is one."""
        where = Path(os.fsdecode(path))
        if descriptors and not where.is_absolute():
            where = Path(f"/proc/self/fd/{descriptors[0]}").readlink() / where
        where = where.absolute()
        return Path(
            os.path.realpath(where if follow else where.parent), *([] if follow else [where.name])
        )

    def _is_cache(self, path: Any) -> bool:
        return "torchinductor" in os.fsdecode(
            path
        )  # which PyTorch makes when it is imported in full

    def _within(self, path: Path) -> bool:
        return self.folder == path or self.folder in path.parents


def run_batch(
    area: Area, good: Path, scratch: Path, seed: int, numbers: range, readable: Sequence[Path]
) -> Tally:
    """Cases ``numbers`` of an area, each from ``seed`` and its number alone. Those behind one that ends its worker get another."""
    tally = Tally()
    following = numbers.start
    while following < numbers.stop:
        folder = scratch / "work"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder, symlinks=True)
        following = _one_worker(area, folder, seed, range(following, numbers.stop), readable, tally)
    return tally


def _one_worker(
    area: Area, folder: Path, seed: int, numbers: range, readable: Sequence[Path], tally: Tally
) -> int:
    """Fork, and listen; returns the number of the case to go on with."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            os.setsid()
            _work(area, folder, seed, numbers, readable, writer)
            os._exit(0)
        except BaseException:
            os.write(writer, json.dumps({"failed": traceback.format_exc()}).encode() + b"\n")
            os._exit(70)
    os.close(writer)
    status, current, killed = _listen(area, pid, reader, tally)
    os.close(reader)
    if killed:
        tally.outcomes["killed"] += 1
        tally.findings.append(Finding(area.name, current, "hang", killed))
    elif os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        tally.outcomes[name] += 1
        tally.findings.append(Finding(area.name, current, "crash", name))
    elif os.WEXITSTATUS(status) not in (0, 71):
        tally.outcomes["exited"] += 1
        tally.findings.append(
            Finding(area.name, current, "crash", f"exit {os.WEXITSTATUS(status)}")
        )
    return current + 1


def _listen(area: Area, pid: int, reader: int, tally: Tally) -> tuple[int, int, str]:
    """Until the worker ends: its status, the case it was at, and why it was killed, if it was."""
    rest, current, began, cpu = b"", -1, time.monotonic(), 0.0
    while True:
        ready, _, _ = select.select([reader], [], [], 1.0)
        if ready:
            data = os.read(reader, 1 << 16)
            if not data:
                return os.waitpid(pid, 0)[1], current, ""
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if "failed" in message:
                    raise RuntimeError(
                        f"the campaign itself fails at {area.name} {current}: {message['failed']}"
                    )
                if "at" in message:
                    current = message["at"]
                else:
                    tally.outcomes[message["outcome"]] += 1
                    tally.findings += [Finding(area.name, current, *f) for f in message["findings"]]
            began, cpu = time.monotonic(), _cpu_seconds(pid)
            continue
        used = _cpu_seconds(pid) - cpu
        if used > CPU_SECONDS or time.monotonic() - began > WALL_SECONDS:
            os.killpg(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
            return (
                status,
                current,
                f"{used:.0f} s of processor time, {time.monotonic() - began:.0f} s",
            )


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _work(
    area: Area, folder: Path, seed: int, numbers: range, readable: Sequence[Path], writer: int
) -> None:
    """The worker."""
    out, err = (
        os.open(folder.parent / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        for name in ("out", "err")
    )
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))
    os.chdir(folder.parent)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    addresses = pages * resource.getpagesize() + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (addresses, addresses))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    watch = Watch(folder, readable)
    canary = folder / "secret"
    resident = _peak()
    for number in numbers:
        rng = random.Random(f"{area.name} {seed} {number}")
        os.write(writer, b'{"at": %d}\n' % number)
        area.damage(folder, rng, number)
        outcome, findings = "", []
        for arguments, stdin in area.commands(folder, number):
            os.write(writer, b'{"at": %d}\n' % number)
            began = time.process_time()
            result, found = run_command(arguments, stdin, out, err, watch)
            outcome = outcome or result
            findings += found
            if (used := time.process_time() - began) > CPU_SECONDS:
                findings.append(("hang", f"{arguments[0]} takes {used:.1f} s of processor time"))
        if canary.exists():
            findings.append(("elsewhere", "canary"))
        grown = _peak() - resident
        if grown > MEMORY:
            findings.append(("memory", f"{grown >> 20} MiB"))
        os.write(writer, json.dumps({"outcome": outcome, "findings": findings}).encode() + b"\n")
        if grown > MEMORY:
            os._exit(71)


def _peak() -> int:
    """Bytes that were resident at most, of this process and of the largest of its children."""
    own, children = (
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return 1024 * max(own, children)


def run_command(
    arguments: list[str], stdin: str, out: int, err: int, watch: Watch
) -> tuple[str, list[tuple[str, str]]]:
    """Run a command in this process: its outcome, and what must not be."""
    from int8conv.cli import main

    for stream, number in ((sys.stdout, out), (sys.stderr, err)):
        stream.flush()
        os.ftruncate(number, 0)
        os.lseek(number, 0, os.SEEK_SET)
    read, write = os.pipe()
    os.write(write, stdin.encode())
    os.close(write)
    os.dup2(read, 0)
    os.close(read)
    sys.stdin = os.fdopen(0, closefd=False)
    findings: list[tuple[str, str]] = []
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, resource.RLIM_INFINITY))
    watch.inside = True
    try:
        main.main(arguments, prog_name="int8conv")
        code: object = 0
    except SystemExit as error:
        code = error.code
    except BaseException as error:
        watch.inside = False  # what follows reads the lines that it shows
        code = type(error).__name__
        findings.append(("traceback", _place(error)))
    finally:
        watch.inside = False
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    printed, said = (
        os.pread(number, 1 << 22, 0).decode(errors="surrogateescape") for number in (out, err)
    )
    findings += [("elsewhere", each) for each in watch.trespasses]
    watch.trespasses.clear()
    own_text = arguments[0] in ("generate", "chat")  # a model's text goes to a file as it is
    findings += [("output", each) for each in _faults(code, "" if own_text else printed, said)]
    return ("good" if code == 0 else "refused" if code == 1 else str(code)), findings


_CONTROL: Final = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def _faults(code: object, printed: str, said: str) -> list[str]:
    """What is wrong with what a command printed."""
    faults = []
    lines = said.splitlines()
    errors = [line for line in lines if line.startswith("int8conv: error: ")]
    strange = [line for line in lines if not line.startswith("int8conv: ")]
    if code == 1 and (len(errors) != 1 or lines[-1:] != errors):
        faults.append(f"exit code 1 and {len(errors)} errors: {said[:300]!r}")
    if code not in (0, 1) and not isinstance(code, str):
        faults.append(f"exit code {code}: {said[:300]!r}")
    if strange:
        faults.append(f"not ours: {strange[0][:300]!r}")
    if any(len(line) > 5000 for line in lines):
        faults.append(f"a line of {max(map(len, lines))} characters: {max(lines, key=len)[:200]!r}")
    for name, text in (("stdout", printed), ("stderr", said)):
        if (match := _CONTROL.search(text)) is not None:
            faults.append(
                f"{name} has {match[0]!r}: {text[max(0, match.start() - 60) : match.end() + 20]!r}"
            )
    return faults


def _place(error: BaseException) -> str:
    """What was raised, and where: the last lines of this package on its way."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        f"{'/'.join(Path(f.filename).parts[-2:])}:{f.lineno}"
        for f in frames
        if "int8conv" in f.filename
    ]
    return f"{type(error).__name__}: {str(error)[:200]} at {' '.join(own[-3:])}"
