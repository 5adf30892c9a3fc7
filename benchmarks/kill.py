"""Kill commands at random moments while another program changes, truncates and replaces their source.

    python benchmarks/kill.py [--kills 1000] [--seed N]

Each round starts one command (convert, a resumed convert, convert --force over an output, calibrate, calibrate over statistics,
merge, inspect --verify, generate) in a process of its own, does something to its source at a random moment, and kills it with SIGKILL
at another. After each:

- an output that is there at all is, byte for byte, what an undisturbed run makes of one state in which the source really was;
- statistics that are there are whole, and of one such state;
- a process that was not killed ended with exit code 0 or 1, without a traceback: no SIGSEGV, no SIGBUS;
- what is none of the command's is as it was.

Every few rounds the source is left alone and the command runs to its end, which must be that of an undisturbed run.

Two places of the weights, one in the first and one in the last tensor, are changed one after the other, always the first place
first and back last. So the weights are in one of three states at any time, and the fourth (old first place, new last one) is what
a reader sees that mixes two of them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from preload import import_all

from int8conv.cli import main
from int8conv.formats.safetensors.header import read_header

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the tests' small checkpoints

STATES = ((0, 0), (1, 0), (1, 1))
"""Of the two places, in the order in which they are passed through."""
PLACE_BYTES = 64


@dataclass
class Source:
    """A checkpoint that is changed while it is read."""

    folder: Path
    states: list[bytes]
    """The weights file in each of ``STATES``."""
    places: list[int]
    state: int = 0

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"

    @classmethod
    def make(cls, folder: Path) -> Source:
        from tests.checkpoints import write_checkpoint

        write_checkpoint(folder)
        data = (folder / "model.safetensors").read_bytes()
        header = read_header(folder / "model.safetensors")
        matrices = [t for t in header.tensors.values() if len(t.shape) > 1]
        places = [
            header.payload_offset + (t.begin + t.end - PLACE_BYTES) // 2  # the fingerprint's sample has it
            for t in (matrices[0], matrices[-1])
        ]  # fmt: skip
        states = []
        for state in STATES:
            changed = bytearray(data)
            for place, new in zip(places, state, strict=True):
                if new:
                    changed[place : place + PLACE_BYTES] = bytes(PLACE_BYTES)
            states.append(bytes(changed))
        return cls(folder, states, places)

    def put(self, state: int) -> None:
        """Replace the weights by those of a state, by a rename."""
        self.state = state
        (self.folder / "new").write_bytes(self.states[state])
        (self.folder / "new").replace(self.weights)

    def overwrite(self, rng: random.Random) -> None:
        """Go to a neighbouring state, in place: one write."""
        state = rng.choice([s for s in (self.state - 1, self.state + 1) if 0 <= s < len(STATES)])
        place = self.places[max(self.state, state) - 1]
        fd = os.open(self.weights, os.O_WRONLY)
        os.pwrite(fd, self.states[state][place : place + PLACE_BYTES], place)
        os.close(fd)
        self.state = state

    def overwrite_in_secret(self, rng: random.Random) -> None:
        """The same, and the time of writing is set back."""
        before = self.weights.stat()
        self.overwrite(rng)
        os.utime(self.weights, ns=(before.st_atime_ns, before.st_mtime_ns))

    def pass_through(self, rng: random.Random) -> None:
        """From one end to the other, or back."""
        for _ in range(3):
            self.overwrite(rng)
            time.sleep(rng.uniform(0, 0.003))

    def truncate(self, rng: random.Random) -> None:
        os.truncate(self.weights, rng.randrange(len(self.states[0])))

    def replace(self, rng: random.Random) -> None:
        self.put(rng.randrange(len(STATES)))

    def remove(self, rng: random.Random) -> None:
        self.weights.unlink(missing_ok=True)

    def whole(self) -> bool:
        """Whether the file is there, in its state."""
        return self.weights.exists() and self.weights.stat().st_size == len(self.states[0])

    def disturb(self, rng: random.Random) -> str:
        """Do one of it, where the file is there and whole."""
        actions = [self.overwrite, self.overwrite_in_secret, self.pass_through, self.truncate, self.replace, self.remove]  # fmt: skip
        action = rng.choice(actions)
        if not self.whole():
            action = self.replace
        action(rng)
        return action.__name__


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(*args: object) -> int:
    """A command, undisturbed, in a process of its own."""
    process = start(args, Path(os.devnull))
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def start(args: Sequence[object], log: Path) -> int:
    process = os.fork()  # a thousand interpreters would take most of the time
    if process:
        return process
    code = 70
    try:
        for number in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), number)
        main([str(arg) for arg in args], prog_name="int8conv")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        os._exit(code)


@dataclass
class Attack:
    """The room, what is right in it, and what happened so far."""

    room: Path
    rng: random.Random
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.source = Source.make(self.room / "source")
        self.out, self.stats, self.model = (self.room / name for name in ("out", "stats", "model"))
        (self.room / "thesis.txt").write_text("the only copy")
        (self.room / "link").symlink_to("thesis.txt")
        self.outputs: list[dict[str, bytes]] = []
        self.statistics: list[bytes] = []
        for state in range(len(STATES)):
            self.source.put(state)
            assert run(*self.convert(), self.room / "expected") == 0
            assert run("calibrate", self.source.folder, "-o", self.room / "expected.stats") == 0
            self.outputs.append(contents(self.room / "expected"))
            self.statistics.append((self.room / "expected.stats").read_bytes())
            shutil.rmtree(self.room / "expected")
        (self.room / "expected.stats").rename(self.room / "other.stats")
        self.merged = self.room / "merged"
        assert run(*self.merge()) == 0
        self.sum = self.merged.read_bytes()
        self.converted = self.room / "converted"
        example = ROOT / "examples" / "small-llama"
        assert run("convert", example, self.converted, "--outliers", "none") == 0
        self.seconds: dict[str, float] = {}

    def convert(self) -> list[object]:
        return ["convert", self.source.folder, "--outliers", "none"]

    def merge(self) -> list[object]:
        other = self.room / "other.stats"
        return ["calibrate", "--merge", other, other, "-o", self.merged]

    def commands(self) -> dict[str, tuple[int, Callable[[], list[object]]]]:
        """By name: how often, and what."""
        return {
            "convert": (55, lambda: [*self.convert(), self.out]),
            "convert --force": (25, lambda: [*self.convert(), self.out, "--force"]),
            "calibrate": (8, lambda: ["calibrate", self.source.folder, "-o", self.stats]),
            "merge": (5, self.merge),
            "inspect": (4, lambda: ["inspect", self.model, "--verify"]),
            "generate": (3, lambda: ["generate", self.model, "--prompt", "A vector", "--max-new-tokens", "4"]),
        }  # fmt: skip

    def round(self) -> None:
        commands = self.commands()
        name = self.rng.choices(list(commands), [often for often, _ in commands.values()])[0]
        args = commands[name][1]()
        if name in ("inspect", "generate"):
            shutil.rmtree(self.model, ignore_errors=True)
            shutil.copytree(self.converted, self.model)
        if name == "convert" and self.rng.random() < 0.8:
            shutil.rmtree(self.out, ignore_errors=True)
        quiet = self.rng.random() < 0.3
        if quiet or not self.source.weights.exists():
            self.source.put(self.rng.randrange(len(STATES)))
        log, began = self.room / "log", time.perf_counter()
        process = start(args, log)
        moment = self.rng.uniform(0, 1.2) * self.seconds.get(name, 0.5)
        did = "nothing" if quiet else self._disturb(name, began, moment)
        time.sleep(max(0.0, began + moment - time.perf_counter()))
        kill = self.rng.random() < 0.9
        if kill:
            os.kill(process, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if code == 0:
            taken = time.perf_counter() - began
            self.seconds[name] = min(self.seconds.get(name, taken), taken)
        self.counts["killed" if code == -9 else f"exit {code}"] += 1
        self.counts[f"{name}: {did}"] += 1
        self.check(f"{name}, {did}, after {moment:.3f} s, exit {code}", code, log)

    def _disturb(self, name: str, began: float, moment: float) -> str:
        time.sleep(max(0.0, began + self.rng.uniform(0, 1) * moment - time.perf_counter()))
        if name not in ("inspect", "generate"):
            return self.source.disturb(self.rng)
        for path in self.model.glob("*.safetensors"):
            if self.rng.random() < 0.5:
                os.truncate(path, self.rng.randrange(path.stat().st_size))
                return "truncate"
            shutil.copy(path, self.model / "new")
            (self.model / "new").replace(path)
        return "replace"

    def check(self, what: str, code: int, log: Path) -> None:
        text = log.read_text(errors="replace") if log.exists() else ""
        self.counts["resumed"] += "were already done" in text
        if code not in (0, 1, -9) or "Traceback" in text:
            sys.exit(f"{what}:\n{text}")
        if self.out.exists() and contents(self.out) not in self.outputs:
            sys.exit(f"{what}: an output that no state of the source gives:\n{text}")
        if self.stats.exists() and self.stats.read_bytes() not in self.statistics:
            sys.exit(f"{what}: statistics that no state of the source has:\n{text}")
        if self.merged.read_bytes() != self.sum:
            sys.exit(f"{what}: a sum of statistics that is none")
        if (self.room / "thesis.txt").read_text() != "the only copy" or not (self.room / "link").is_symlink():  # fmt: skip
            sys.exit(f"{what}: what is none of its was changed")

    def finish(self) -> None:
        """Nobody disturbs: the same command ends, and with the right bytes."""
        state = self.rng.randrange(len(STATES))
        if self.rng.random() < 0.5 or not self.source.whole():
            self.source.put(state)
        shutil.rmtree(self.out, ignore_errors=True)
        log = self.room / "log"
        process = start([*self.convert(), self.out, "--force"], log)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        self.counts["resumed"] += "were already done" in log.read_text()
        if code or contents(self.out) != self.outputs[self.source.state]:
            sys.exit(f"undisturbed: exit {code}, another output:\n{log.read_text()}")


def attack(room: Path, kills: int, seed: int) -> Counter[str]:
    """Rounds until so many processes were killed, or Ctrl-C; what happened, by count."""
    import torch

    import_all()
    torch.set_num_threads(1)  # threads do not survive a fork
    state = Attack(room, random.Random(seed))
    with contextlib.suppress(KeyboardInterrupt):
        while state.counts["killed"] < kills:
            state.round()
            state.counts["rounds"] += 1
            if state.rng.random() < 0.2:
                state.finish()
            if state.counts["rounds"] % 50 == 0:
                print(f"{state.counts['killed']} killed", file=sys.stderr)
    return state.counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        counts = attack(Path(temporary), arguments.kills, arguments.seed)
    print(f"seed {arguments.seed}: every output was whole, and of one state of its source")
    for name, count in sorted(counts.items()):
        print(f"  {count:6} {name}")
