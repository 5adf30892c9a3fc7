"""Some three thousand damaged inputs, from seeds: only this package's errors, soon, small, and within the folder.

Beside those of ``test_header.py`` and ``test_pickled.py``; ``benchmarks/hostile.py`` makes as many as one asks for.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import int8conv
from benchmarks.mutate import mutated_bytes, mutated_json
from int8conv.convert.converter import convert_checkpoint
from int8conv.convert.options import ConvertOptions
from int8conv.convert.preview import preview
from int8conv.errors import Int8convError
from int8conv.formats.int8.folder import open_converted
from int8conv.formats.int8.summary import inspect_folder
from int8conv.formats.int8.verify import verify
from int8conv.formats.source.checkpoint import open_checkpoint

from ...checkpoints import LLAMA, OPT, write_checkpoint
from ..damage import INDEX, MANIFEST, edit_json, read_shard, write_raw, write_shard

SMALL = OPT | {"num_hidden_layers": 1, "hidden_size": 16, "ffn_dim": 48, "word_embed_proj_dim": 16}
CONFIG = "config.json"
PICKLE = "pytorch_model.bin"
SECONDS = 2
"""Of processor time that a case may take; a good one takes milliseconds."""
WAITING = 60
"""Seconds that a case may take in all, on a machine however busy."""
ALLOCATED = 128 << 20
"""Bytes that a case may add to the address space; the good inputs are some 100 kB."""
STATM = Path("/proc/self/statm")


class TooSlowError(BaseException):
    """No ``except Exception`` hides it."""


class Watch:
    """Looks at one case after the other: how it ends, how long it takes, what it opens, what it allocates."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.outcomes: Counter[str] = Counter()
        self.trespasses: list[str] = []
        self._inside = False
        for number in (signal.SIGPROF, signal.SIGALRM):
            signal.signal(number, self._too_slow)
        sys.addaudithook(self._audit)

    def case(self, read: Callable[[], object], label: object) -> None:
        self._inside = True
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, WAITING)
        try:
            with limited_memory():
                read()
            self.outcomes["good"] += 1
        except Int8convError as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 5000, label
            self.outcomes[type(error).__name__] += 1
        except BaseException as error:
            raise AssertionError(f"{label}: {error!r}") from error
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._inside = False
        assert not self.trespasses, (label, self.trespasses)

    def close(self) -> None:
        self._inside = False
        for number in (signal.SIGPROF, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)

    def _too_slow(self, number: int, frame: FrameType | None) -> None:
        raise TooSlowError

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._inside or event not in _EVENTS:
            return
        if event == "open":
            path, mode, flags = args
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if isinstance(path, int):
                return
            parents = Path(os.fsdecode(path)).resolve().parents
            if writes or not _READABLE.union([self.folder]) & set(parents):
                self.trespasses.append(f"{event} {path} {mode}")
        else:
            self.trespasses.append(f"{event} {args}")


@contextmanager
def limited_memory() -> Iterator[None]:
    """In the block an allocation of more than ALLOCATED bytes is a MemoryError, used or not."""
    if not STATM.exists():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = int(STATM.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ALLOCATED, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


_READABLE = {
    Path(sys.prefix),
    Path(sys.base_prefix),
    Path(int8conv.__file__).parent,
    Path("/proc"),
    Path("/sys/fs/cgroup"),
}
"""Besides the folder: imports, and the address space's size."""
_EVENTS = {
    "open", "os.system", "subprocess.Popen", "os.exec", "os.fork", "os.posix_spawn", "os.mkdir",
    "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod",
    "shutil.rmtree", "socket.connect",
}  # fmt: skip


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    """Of ``tmp_path / "folder"``, beside which lies a file that a name may point to."""
    (tmp_path / "secret.safetensors").write_bytes((8).to_bytes(8, "little") + b"{}      ")
    watch = Watch(tmp_path / "folder")
    yield watch
    watch.close()


@pytest.fixture
def folder(tmp_path: Path, watch: Watch) -> Path:
    """A small source in two shards; OPT, so that there are biases."""
    return write_checkpoint(tmp_path / "folder", SMALL, shards=2)


def plan_of(folder: Path) -> Callable[[], object]:
    """Everything that reads a source before its weights are read."""
    return lambda: preview(folder, folder / "out", ConvertOptions(outliers="none"))


def all_of(folder: Path) -> Callable[[], object]:
    """Everything that reads a converted folder but its weights' use."""

    def read() -> None:
        converted = open_converted(folder)
        inspect_folder(converted).to_json()
        verify(converted)

    return read


def test_source_headers(folder: Path, watch: Watch) -> None:
    rng = random.Random(1)
    shard = folder / "model-00001-of-00002.safetensors"
    header, payload = read_shard(shard)
    text = json.dumps(header).encode()
    for number in range(500):
        write_raw(shard, mutated_json(rng, header), payload)
        watch.case(plan_of(folder), number)
    for number in range(300):
        shard.write_bytes(
            mutated_bytes(rng, len(text).to_bytes(8, "little") + text + payload, 4000)
        )
        watch.case(plan_of(folder), number)
    assert len(watch.outcomes) >= 8, watch.outcomes


def test_source_index(folder: Path, watch: Watch) -> None:
    rng = random.Random(2)
    index = json.loads((folder / INDEX).read_text())
    for number in range(400):
        (folder / INDEX).write_bytes(mutated_json(rng, index))
        watch.case(plan_of(folder), number)
    # tensors are found where they are, whatever an index says of them, as transformers finds them
    assert set(watch.outcomes) >= {"JsonFileError", "UnsafePathError", "good"}


@pytest.mark.parametrize("config", [LLAMA, OPT], ids=["llama", "opt"])
def test_source_config(folder: Path, watch: Watch, config: dict[str, Any]) -> None:
    shutil.rmtree(folder)
    write_checkpoint(folder, config)
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32}  # fmt: skip
    config = config | ({"rope_theta": 1e4, "rope_scaling": rope} if config is LLAMA else {})
    rng = random.Random(3)
    for number in range(300):
        (folder / CONFIG).write_bytes(text := mutated_json(rng, config))
        watch.case(plan_of(folder), (number, text[:2000]))
    assert set(watch.outcomes) >= {"JsonFileError", "ShapeError", "good"}


@pytest.fixture
def converted(folder: Path, tmp_path: Path) -> Path:
    """A small converted folder of two shards, in the watched place."""
    folder.rename(tmp_path / "source")
    convert_checkpoint(tmp_path / "source", folder, outliers="none", max_shard_bytes=8000)
    return folder


@pytest.mark.parametrize(
    ("name", "count"),
    [(CONFIG, 200), (INDEX, 250), (MANIFEST, 400)],
    ids=[CONFIG, INDEX, MANIFEST],
)
def test_converted_json(converted: Path, watch: Watch, name: str, count: int) -> None:
    rng = random.Random(name)
    value = json.loads((converted / name).read_text())
    for number in range(count):
        (converted / name).write_bytes(text := mutated_json(rng, value))
        watch.case(all_of(converted), (number, text[:2000]))
    assert len(watch.outcomes) >= 4, watch.outcomes


def test_converted_headers(converted: Path, watch: Watch) -> None:
    rng = random.Random(5)
    shard = sorted(converted.glob("*.safetensors"))[0]
    header, payload = read_shard(shard)
    for number in range(300):
        text = mutated_json(rng, header)
        text += b" " * (-(8 + len(text)) % 4096)
        write_raw(shard, text, payload)
        watch.case(all_of(converted), number)
    assert len(watch.outcomes) >= 8, watch.outcomes


def test_pickles(tmp_path: Path, watch: Watch) -> None:
    """Flipped, cut and spliced zip files, and damaged pickles in whole ones."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(LLAMA))
    path = folder / PICKLE
    torch.save({"a": torch.zeros(4, 4), "b": torch.ones(3).half(), "c": torch.zeros(0)}, path)
    whole = path.read_bytes()
    open_checkpoint(folder)  # what torch imports and makes of its own, when it is first used
    rng = random.Random(6)
    for number in range(150):
        path.write_bytes(mutated_bytes(rng, whole))
        watch.case(lambda: open_checkpoint(folder), number)
    for number in range(200):
        rewrite_zip(path, whole, lambda data: mutated_bytes(rng, data))
        watch.case(lambda: open_checkpoint(folder), number)
    assert set(watch.outcomes) >= {"good", "PickleFileError"}


def rewrite_zip(path: Path, whole: bytes, change: Callable[[bytes], bytes]) -> None:
    """The zip file with another pickle in it."""
    path.write_bytes(whole)
    with zipfile.ZipFile(path) as old:
        members = [(info, old.read(info)) for info in old.infolist()]
    with zipfile.ZipFile(path, "w") as new:
        for info, data in members:
            changed = change(data) if info.filename.endswith("data.pkl") else data
            new.writestr(info.filename, changed)


HUGE = 10**11
"""100 GB of elements, that no file here has."""


def claim_in_header(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[0]
    header, payload = read_shard(shard)
    name = next(name for name, entry in header.items() if len(entry.get("shape", ())) > 1)
    begin = header[name]["data_offsets"][0]
    header[name] |= {"shape": [HUGE, 1], "dtype": "I8", "data_offsets": [begin, begin + HUGE]}
    write_shard(shard, header, payload)


def claim_by_length(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes((99_999_999).to_bytes(8, "little") + shard.read_bytes()[8:])


def claim_by_longer_length(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(HUGE.to_bytes(8, "little") + shard.read_bytes()[8:])


@pytest.mark.parametrize("claim", [claim_in_header, claim_by_length, claim_by_longer_length])
@pytest.mark.parametrize("kind", ["folder", "converted"])
def test_a_header_that_claims_100_gb(
    request: pytest.FixtureRequest, watch: Watch, kind: str, claim: Callable[[Path], None]
) -> None:
    folder: Path = request.getfixturevalue(kind)
    claim(folder)
    tracemalloc.start()
    try:
        watch.case((plan_of if kind == "folder" else all_of)(folder), kind)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert set(watch.outcomes) <= {"TruncatedFileError", "HeaderTooLongError"}


@pytest.mark.parametrize("field", ["bytes", "header_bytes"])
def test_a_manifest_that_claims_100_gb(converted: Path, watch: Watch, field: str) -> None:
    shard = sorted(converted.glob("*.safetensors"))[0]
    edit_json(converted / MANIFEST, lambda m: m["files"][shard.name].update({field: HUGE}))
    watch.case(all_of(converted), field)
    assert set(watch.outcomes) <= {"TruncatedFileError", "ChecksumError"}


def test_a_config_that_claims_10_to_the_400_layers(folder: Path, watch: Watch) -> None:
    edit_json(folder / CONFIG, lambda config: config.update(num_hidden_layers=10**400))
    watch.case(plan_of(folder), "layers")
    assert set(watch.outcomes) == {"JsonFileError"}


@pytest.mark.parametrize("what", ["shape", "storage"])
def test_a_pickle_that_claims_100_gb(tmp_path: Path, watch: Watch, what: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(LLAMA))
    path = folder / PICKLE
    torch.save({"a": torch.zeros(77)}, path)
    open_checkpoint(folder)
    number = b"\x8a\x05" + HUGE.to_bytes(5, "little")  # LONG1
    small = b"K\x4d"  # BININT1 77: once in the storage's entry, once in the shape
    one, other = {"shape": (small, number), "storage": (number, small)}[what]

    def change(data: bytes) -> bytes:
        before, between, after = data.split(small)
        return before + one + between + other + after

    rewrite_zip(path, path.read_bytes(), change)
    watch.case(lambda: open_checkpoint(folder), what)
    if what == "shape":
        assert set(watch.outcomes) <= {"TruncatedFileError", "PickleFileError"}
    elif "good" in watch.outcomes:  # only what the tensor needs of its storage is ever read
        assert open_checkpoint(folder).nbytes == 77 * 4
