"""What a model takes of the machine's memory: its peak since some moment, as the system counts it."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import torch

_STATUS: Final = Path("/proc/self/status")
_CLEAR: Final = Path("/proc/self/clear_refs")
_CLEAR_PEAK: Final = "5"
"""Resets the peak of resident memory (proc(5))."""


@dataclass(frozen=True)
class MemoryUse:
    """Bytes, above what the process had at the start."""

    peak: int | None
    """Anonymous peak and mapped weights on a CPU, PyTorch's allocations on a GPU; None where the system does not say."""
    anonymous: int | None = None
    """On a CPU: the peak of memory that no file is behind."""
    mapped: int | None = None
    """On a CPU: weights files that are mapped, whole, whatever part of them was touched."""
    device: int | None = None
    """On a GPU: what the device has less now: also PyTorch's reserve, CUDA graphs, compiled kernels."""


class PeakMemory(Protocol):
    """Watches from when it is made."""

    def use(self, mapped: int) -> MemoryUse:
        """So far, with so many bytes of weights mapped."""


def watch_memory(device: torch.device) -> PeakMemory:
    """Start to watch."""
    return _DevicePeak(device) if device.type == "cuda" else _HostPeak()


class _HostPeak:
    """The kernel keeps the exact peak of resident memory; files' pages in it stay, so the rest is the anonymous peak."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):  # not allowed: then it is the peak of the process
            _CLEAR.write_text(_CLEAR_PEAK)
        self._before = _status()

    def use(self, mapped: int) -> MemoryUse:
        before, now = self._before, _status()
        if not {"VmHWM", "VmRSS", "RssFile"} <= now.keys() & before.keys():
            return MemoryUse(None)
        files = now["RssFile"] - before["RssFile"]
        anonymous = max(0, now["VmHWM"] - before["VmRSS"] - files)
        return MemoryUse(anonymous + mapped, anonymous, mapped)


class _DevicePeak:
    """PyTorch counts its allocations; the device says what is free."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        torch.cuda.reset_peak_memory_stats(device)
        self._allocated = torch.cuda.memory_allocated(device)
        self._free = torch.cuda.mem_get_info(device)[0]

    def use(self, mapped: int) -> MemoryUse:
        peak = torch.cuda.max_memory_allocated(self._device) - self._allocated
        return MemoryUse(peak, device=self._free - torch.cuda.mem_get_info(self._device)[0])


def _status() -> dict[str, int]:
    """Bytes by the names of proc(5); none where there is no such file."""
    try:
        text = _STATUS.read_text()
    except OSError:
        return {}
    found = re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)
    return {name: int(kilobytes) * 1024 for name, kilobytes in found}
