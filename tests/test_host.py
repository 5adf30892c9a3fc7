"""Processors and memory as control groups leave them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from int8conv import host


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(host, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(host, "_OWN", tmp_path / "own")
    monkeypatch.setattr(host, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    (tmp_path / "own").write_text("4:cpu,cpuacct:/a/b\n0::/outer/inner\n")
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    5 kB\nSwapFree: 2 kB\n")
    return tmp_path / "cgroup"


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_processors(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert host.processors() == 8  # affinity
    write(groups / "outer" / "inner", cpu__max="max 100000\n")
    assert host.processors() == 8
    write(groups / "outer", cpu__max="250000 100000\n")
    assert host.processors() == 3  # rounded up
    write(groups / "cpu,cpuacct" / "a" / "b", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")  # fmt: skip
    assert host.processors() == 3
    write(groups / "cpu", cpu__cfs_quota_us="50000\n", cpu__cfs_period_us="100000\n")
    assert host.processors() == 1
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert host.processors() == 1


def test_memory(groups: Path) -> None:
    assert host.available_memory() == 7 << 10
    write(groups / "outer", memory__max="5000\n", memory__current="1000\n")
    assert host.available_memory() == 4000
    write(groups / "outer" / "inner", memory__max="max\n", memory__current="10\n")
    assert host.available_memory() == 4000
    host._MEMINFO.unlink()
    assert host.available_memory() is None
