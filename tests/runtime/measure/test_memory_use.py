"""Peak memory: what the system's files say is read right, and remembered when it was freed; what GPUs say, from counts made up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from int8conv.kernels.cpu import jit
from int8conv.runtime.measure import memory_use
from int8conv.runtime.measure.memory_use import MemoryUse, watch_memory

CPU = torch.device("cpu")
MIB = 1 << 20


def write_status(path: Path, **kilobytes: int) -> None:
    """As proc(5) has it, other lines among them."""
    fields = "".join(f"{name}:\t{value:8} kB\n" for name, value in kilobytes.items())
    path.write_text(f"Name:\tpython\nPid:\t7\n{fields}VmFlags: 12 kB of something\nThreads:\t3\n")


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of /proc/self; nothing is warmed up."""
    folder = tmp_path / "proc"
    folder.mkdir()
    for name in ("status", "smaps", "clear_refs"):
        monkeypatch.setattr(memory_use, {"clear_refs": "_CLEAR"}.get(name, f"_{name.upper()}"), folder / name)  # fmt: skip
    monkeypatch.setattr(memory_use, "_warm_up", lambda: None)
    (folder / "smaps").write_text("")
    return folder


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder with a file, and a link to another elsewhere."""
    folder = tmp_path / "a model"
    folder.mkdir()
    (folder / "x.safetensors").write_bytes(b"")
    (tmp_path / "blob").write_bytes(b"")
    (folder / "y.safetensors").symlink_to(tmp_path / "blob")
    return folder


def test_the_peak_is_anonymous_memory_above_the_start(proc: Path, weights: Path) -> None:
    """The most that was resident, without what files and shared memory have now."""
    write_status(proc / "status", VmHWM=500, RssAnon=100, RssFile=300, RssShmem=10)
    memory = watch_memory(CPU)
    assert (proc / "clear_refs").read_text() == "5"
    write_status(proc / "status", VmHWM=900, RssAnon=150, RssFile=350, RssShmem=20)
    assert memory.use(weights) == MemoryUse((530 - 100) << 10, (530 - 100) << 10, 0)
    write_status(proc / "status", VmHWM=400, RssAnon=50, RssFile=350, RssShmem=0)
    assert memory.use(weights) == MemoryUse(0, 0, 0)  # less than at the start


def test_weights_that_are_mapped_count_and_nothing_else(proc: Path, weights: Path) -> None:
    """What was read of a file, without the pages that were written to since; a folder's links lead to its files."""
    write_status(proc / "status", VmHWM=100, RssAnon=100, RssFile=0, RssShmem=0)
    blob = weights.parent / "blob"
    (proc / "smaps").write_text(f"""\
7f00-7f10 r--p 00000000 fd:01 11   {weights}/x.safetensors
Size:               4000 kB
Rss:                 300 kB
Pss:                 999 kB
Anonymous:            40 kB
VmFlags: rd mr mw me
7f10-7f20 r--p 00001000 fd:01 12   {blob}
Rss:                   5 kB
Anonymous:             0 kB
7f20-7f30 rw-p 00000000 00:00 0
Rss:                7000 kB
Anonymous:          7000 kB
7f30-7f40 r--p 00000000 fd:01 13   /usr/lib/x.safetensors
Rss:                8000 kB
7f40-7f50 r--p 00000000 fd:01 11   {weights}/x.safetensors
Rss:                   2 kB
""")
    use = watch_memory(CPU).use(weights)
    assert use == MemoryUse(267 << 10, 0, 267 << 10)


def test_where_the_system_says_less(proc: Path, weights: Path) -> None:
    assert watch_memory(CPU).use(weights) == MemoryUse(None)  # no such file
    write_status(proc / "status", VmHWM=500, RssFile=300, RssShmem=10)
    memory = watch_memory(CPU)
    write_status(proc / "status", VmHWM=500, RssAnon=1, RssFile=300, RssShmem=10)
    assert memory.use(weights) == MemoryUse(None)


@pytest.mark.parametrize("numba", [True, False])
def test_libraries_are_used_once_before_the_start(
    monkeypatch: pytest.MonkeyPatch, numba: bool
) -> None:
    """In both modes and by default, for a token and for several; layers are compiled where they can be."""
    used: list[object] = []
    monkeypatch.setattr(memory_use, "mixed_linear", lambda x, weight, mode: used.append((len(x), mode)))  # fmt: skip
    monkeypatch.setattr(memory_use, "prepare", lambda: used.append("layers"))
    monkeypatch.setattr(jit, "available", lambda: numba)
    watch_memory(CPU)
    linears = [(tokens, mode) for tokens in (1, 64) for mode in ("w8a8", "w8a16", None)]
    assert used == [*linears, *(["layers"] if numba else [])]


def test_peak_memory_remembers_what_was_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jit, "available", lambda: False)  # compiling takes long
    memory = watch_memory(CPU)
    before = memory.use(tmp_path)
    big = torch.ones(48 << 20, dtype=torch.uint8)
    del big
    (tmp_path / "weights").write_bytes(bytes(MIB))
    mapped = torch.from_file(str(tmp_path / "weights"), size=MIB, dtype=torch.uint8)
    assert mapped.sum() == 0
    use = memory.use(tmp_path)
    if use.peak is None or before.peak is None:
        pytest.skip("this system does not say")
    assert use.anonymous is not None
    assert 47 * MIB <= use.anonymous <= before.peak + 64 * MIB
    assert (use.mapped, use.peak) == (MIB, use.anonymous + MIB)


def test_a_gpu_counts_its_allocations_and_says_what_is_free(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device, events = torch.device("cuda", 2), list[str]()
    counts = {"memory_allocated": 100, "max_memory_allocated": 100, "free": 9000}

    def count(name: str) -> int:
        events.append(name)
        return counts[name]

    def check(found: object) -> None:
        assert found == device

    cuda = memory_use.torch.cuda
    for name in ("memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(cuda, name, lambda found, name=name: check(found) or count(name))
    monkeypatch.setattr(cuda, "reset_peak_memory_stats", lambda found: check(found) or events.append("reset"))  # fmt: skip
    monkeypatch.setattr(cuda, "mem_get_info", lambda found: check(found) or (count("free"), 0))
    memory = watch_memory(device)
    assert events == ["reset", "memory_allocated", "free"]
    counts |= {"memory_allocated": 150, "max_memory_allocated": 400, "free": 8500}
    assert memory.use(tmp_path) == MemoryUse(300, device=500)
    assert memory.use(Path(os.devnull)) == MemoryUse(300, device=500)  # no file is looked at
