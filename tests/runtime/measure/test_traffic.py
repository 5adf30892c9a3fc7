"""Bytes that a step reads, counted by another reader; bandwidth and page cache from clocks and pages that are made up."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from int8conv.convert.converter import convert_checkpoint
from int8conv.formats.safetensors.storage import LocalFile
from int8conv.runtime.measure import traffic
from int8conv.runtime.measure.traffic import bandwidth, cached_fraction, now, step_bytes
from int8conv.runtime.opening import open_model

from ...checkpoints import LLAMA, OPT, random_tensors, write_checkpoint

CPU = torch.device("cpu")
EMBED = "model.embed_tokens.weight"


def file_bytes(folder: Path, *without: str) -> int:
    """Of all tensors but some and the padding, as safetensors' own reader finds them."""
    tensors = [item for path in folder.glob("*.safetensors") for item in load_file(path).items()]
    return sum(t.nbytes for name, t in tensors if name not in without and "padding" not in name)


def test_a_converted_folder_counts_as_it_is_stored(source: Path, tmp_path: Path) -> None:
    """Codes, scales, outlier columns, norms and head, whatever the activations' dtype; a row of the embedding is nothing."""
    convert_checkpoint(source, tmp_path / "int8", outliers="none", keep=["up_proj"])
    for dtype in (torch.float32, torch.float16):
        assert step_bytes(open_model(tmp_path / "int8"), dtype) == file_bytes(tmp_path / "int8", EMBED)  # fmt: skip


@pytest.mark.parametrize(("dtype", "itemsize"), [(torch.float32, 4), (torch.float16, 2)])
def test_a_source_counts_in_the_dtype_that_it_runs_in(source: Path, dtype: torch.dtype, itemsize: int) -> None:  # fmt: skip
    expected = file_bytes(source, EMBED) // 2 * itemsize
    assert step_bytes(open_model(source), dtype) == expected
    assert step_bytes(open_model(source), dtype, batch=5) == expected


def test_an_embedding_that_is_the_head_too_is_read_and_positions_are_not(tmp_path: Path) -> None:
    """Biases are."""
    source = write_checkpoint(tmp_path, OPT)
    expected = file_bytes(source, "model.decoder.embed_positions.weight")
    assert step_bytes(open_model(source), torch.float16) == expected


def test_experts_that_no_token_reaches_are_not_read(tmp_path: Path) -> None:
    """On average; the router is always."""
    config = LLAMA | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 1}
    opened = open_model(write_checkpoint(tmp_path / "moe", config))
    tensors = random_tensors(config)
    experts = sum(t.nbytes for name, t in tensors.items() if ".experts." in name)
    rest = sum(t.nbytes for t in tensors.values()) - experts - tensors[EMBED].nbytes
    for batch, share in ((1, 1 / 4), (2, 1 - (3 / 4) ** 2), (100, 1.0)):
        assert step_bytes(opened, torch.float16, batch) == pytest.approx(rest + share * experts, abs=1)  # fmt: skip


def clock(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> list[str]:
    """Each call that is timed takes so long; what happens is told."""
    events: list[str] = []
    times = iter(t for i, each in enumerate(seconds) for t in (100.0 * i, 100.0 * i + each))

    def tick() -> float:
        events.append("clock")
        return next(times)

    monkeypatch.setattr(traffic, "time", SimpleNamespace(perf_counter=tick))
    monkeypatch.setattr(traffic, "_REPEATS", len(seconds))
    return events


def test_a_cpus_bandwidth_is_the_best_of_several_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "HOST_BYTES", 1 << 20)
    clock(monkeypatch, 3.0, 0.5, 2.0)
    assert bandwidth(CPU) == (1 << 20) / 0.5


def test_a_gpus_bandwidth_is_of_a_copy_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read and written; the clock is looked at when the device has done what it was told. The first copy is not timed."""
    monkeypatch.setattr(traffic, "DEVICE_BYTES", 1 << 10)
    events = clock(monkeypatch, 4.0, 8.0)
    device = torch.device("cuda", 3)

    def synchronize(found: Any) -> None:
        assert found == device
        events.append("wait")

    class Memory:
        nbytes = 1 << 10

        def copy_(self, source: object) -> None:
            events.append("copy")

    def empty(count: int, *, dtype: torch.dtype, device: object) -> Memory:
        assert (count, dtype) == (1 << 10, torch.uint8)
        return Memory()

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch, "empty_like", lambda source: Memory())
    assert bandwidth(device) == 2 * (1 << 10) / 4.0
    timed = ["wait", "clock", "copy", "wait", "clock"]
    assert events == ["copy", *timed, *timed]


def test_time_goes_on() -> None:
    before = now(CPU)
    assert now(CPU) >= before


@pytest.fixture
def files(tmp_path: Path) -> list[LocalFile]:
    """Of 100 pages and 300, the last not a whole one, and an empty one."""
    for name, size in (("a", 100 * 4096), ("b", 300 * 4096 - 5), ("c", 0)):
        (tmp_path / name).write_bytes(bytes(size))
    return [LocalFile(tmp_path / name) for name in "abc"]


def test_samples_are_spread_over_files_by_their_size(
    files: list[LocalFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "RWF_NOWAIT", 8, raising=False)
    monkeypatch.setattr(traffic, "_SAMPLES", 8)
    asked: dict[str, list[int]] = {}

    def has_page(fd: int, offset: int, flag: int) -> bool:
        assert flag == 8
        name = Path(f"/proc/self/fd/{fd}").readlink().name
        asked.setdefault(name, []).append(offset // 4096)
        return name == "a"

    monkeypatch.setattr(traffic, "_has_page", has_page)
    share = cached_fraction(files)
    assert asked == {"a": [0, 50], "b": [0, 60, 120, 180, 240]}
    assert share == 2 / 7
    monkeypatch.setattr(traffic, "_SAMPLES", 1 << 20)  # every page once, no more
    asked.clear()
    assert cached_fraction(files) == 0.25
    assert asked == {"a": list(range(100)), "b": list(range(300))}


def test_where_the_system_does_not_say(files: list[LocalFile], monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    def refuse(*_: object) -> bool:
        raise OSError("not here")

    open_before = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr(traffic, "_has_page", refuse)
    assert cached_fraction(files) is None
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before
    monkeypatch.delattr(os, "RWF_NOWAIT", raising=False)
    assert cached_fraction(files) is None


def test_no_files_have_no_share(files: list[LocalFile]) -> None:
    assert cached_fraction([]) is None
    assert cached_fraction(files[2:]) is None
    assert cached_fraction([object()]) is None  # type: ignore[list-item]  # elsewhere


def test_what_was_just_written_is_there(files: list[LocalFile]) -> None:
    share = cached_fraction(files)
    if share is None:
        pytest.skip("this file system does not say")
    assert share == 1.0
    for file in files[:2]:
        with file.path.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    share = cached_fraction(files)
    assert share is not None
    assert 0 <= share <= 1  # the system may keep any part of it
