"""Resources available to this process: processors and memory, considering affinity and control groups."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

_CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN: Final = Path("/proc/self/cgroup")
_MEMINFO: Final = Path("/proc/meminfo")


def processors() -> int:
    """The number of processors that this process may use: its affinity, limited by the quota of its control groups, rounded up."""
    return max(1, min([affinity(), *_quotas()]))


def affinity() -> int:
    """The number of processors that this process may run on."""
    given = getattr(os, "sched_getaffinity", None)
    return len(given(0)) if given else os.cpu_count() or 1


def available_memory() -> int | None:
    """Bytes that can be allocated before the system runs out, including swap; None if it does not say."""
    with suppress(OSError):
        fields = dict(re.findall(r"^(\w+):\s+(\d+) kB$", _MEMINFO.read_text(), re.MULTILINE))
        if "MemAvailable" in fields:
            free = (int(fields["MemAvailable"]) + int(fields.get("SwapFree", 0))) << 10
            return min([free, *_memory_left()])
    return None


def _quotas() -> Iterator[int]:
    for group in _groups():
        quota, period = _numbers(group / "cpu.max")[:2] or (0, 0)  # version 2
        if not period:
            quota = next(iter(_numbers(group / "cpu.cfs_quota_us")), 0)
            period = next(iter(_numbers(group / "cpu.cfs_period_us")), 0)
        if quota > 0 and period > 0:
            yield -(-quota // period)


def _memory_left() -> Iterator[int]:
    for group in _groups():
        for limit, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            most, now = _numbers(group / limit), _numbers(group / used)
            if most and now:
                yield max(0, most[0] - now[0])


def _groups() -> Iterator[Path]:
    """The folders of this process's control groups and their parents; in a container often only the root."""
    yield from (_CGROUPS, _CGROUPS / "cpu", _CGROUPS / "memory")
    with suppress(OSError):
        for line in _OWN.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            folder = _CGROUPS / controllers / path.lstrip("/")
            while _CGROUPS in folder.parents:
                yield folder
                folder = folder.parent


def _numbers(file: Path) -> list[int]:
    """Of a file; "max" and absence are none."""
    try:
        words = file.read_text().split()
    except OSError:
        return []
    return [int(word) for word in words] if all(word.lstrip("-").isdigit() for word in words) else []  # fmt: skip
