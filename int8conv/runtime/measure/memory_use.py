"""What a model takes of the machine's memory: its peak since some moment, as the system counts it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import torch
import torch.nn.functional as F

from ...kernels.cpu import jit
from ...kernels.cpu.fused import prepare
from ...kernels.dispatch import MODES, dense_linear, mixed_linear
from ...kernels.weight import MixedWeight

_STATUS: Final = Path("/proc/self/status")
_SMAPS: Final = Path("/proc/self/smaps")
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
    """On a CPU: what of the weights files is mapped and in memory."""
    device: int | None = None
    """On a GPU: what the device has less now: also PyTorch's reserve, CUDA graphs, compiled kernels."""


class PeakMemory(Protocol):
    """Watches from when it is made."""

    def use(self, folder: Path) -> MemoryUse:
        """So far, with the weights files of a folder."""


def watch_memory(device: torch.device) -> PeakMemory:
    """Start to watch."""
    return _DevicePeak(device) if device.type == "cuda" else _HostPeak()


class _HostPeak:
    """The kernel keeps the exact peak of resident memory; files' pages in it stay, so the rest is the anonymous peak."""

    def __init__(self) -> None:
        _warm_up()
        gc.collect()
        with contextlib.suppress(AttributeError, OSError):  # glibc: freed memory goes back
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):  # not allowed: then it is the peak of the process
            _CLEAR.write_text(_CLEAR_PEAK)
        self._before = _status()

    def use(self, folder: Path) -> MemoryUse:
        before, now = self._before, _status()
        if not {"VmHWM", "RssFile", "RssShmem", "RssAnon"} <= now.keys() & before.keys():
            return MemoryUse(None)
        peak = now["VmHWM"] - now["RssFile"] - now["RssShmem"]
        anonymous = max(0, peak - before["RssAnon"])
        mapped = _mapped({os.path.realpath(entry) for entry in folder.iterdir()})
        return MemoryUse(anonymous + mapped, anonymous, mapped)


class _DevicePeak:
    """PyTorch counts its allocations; the device says what is free."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        torch.cuda.reset_peak_memory_stats(device)
        self._allocated = torch.cuda.memory_allocated(device)
        self._free = torch.cuda.mem_get_info(device)[0]

    def use(self, folder: Path) -> MemoryUse:
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


def _mapped(files: set[str]) -> int:
    """Bytes of mapped files that are in memory and not written to."""
    total, counts = 0, False
    for line in _SMAPS.read_text(errors="surrogateescape").splitlines():
        name, _, value = line.partition(":")
        if "-" in name.partition(" ")[0]:  # an address range begins a mapping
            counts = line.split(maxsplit=5)[-1] in files
        elif counts and name in ("Rss", "Anonymous"):
            size = int(value.removesuffix(" kB")) * 1024
            total += size if name == "Rss" else -size
    return total


def _warm_up() -> None:
    """What libraries allocate or compile at their first use is theirs, not the model's."""
    weight = MixedWeight(torch.ones(64, 64, dtype=torch.int8), torch.ones(64))
    with torch.inference_mode():
        for tokens in (1, 64):
            x = torch.ones(tokens, 64)
            for mode in MODES:
                mixed_linear(x, weight, mode=mode)
            dense_linear(x, torch.ones(64, 64, dtype=torch.float16))
            F.linear(x, torch.ones(64, 64))
            heads = x.view(1, 1, tokens, 64)
            F.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
            x.log_softmax(-1).argmax()
    if jit.available():
        prepare()
