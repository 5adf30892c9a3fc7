"""Measured memory of a model: its peak since some moment, as counted by the system."""

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
"""Writing this resets the peak of resident memory (proc(5))."""


@dataclass(frozen=True)
class MemoryUse:
    """Bytes above what the process used at the start."""

    peak: int | None
    """Anonymous peak plus mapped weights on a CPU, PyTorch's allocations on a GPU; None if the system does not say."""
    anonymous: int | None = None
    """On a CPU: the peak of memory not backed by files."""
    mapped: int | None = None
    """On a CPU: the part of the weights files that is mapped and resident."""
    device: int | None = None
    """On a GPU: the decrease in free memory, including PyTorch's reserve, CUDA graphs and compiled kernels."""


class PeakMemory(Protocol):
    """Watches memory from its creation on."""

    def use(self, folder: Path) -> MemoryUse:
        """Memory used so far, with the weights files of ``folder``."""


def watch_memory(device: torch.device) -> PeakMemory:
    """Start watching memory."""
    return _DevicePeak(device) if device.type == "cuda" else _HostPeak()


class _HostPeak:
    """Uses the kernel's exact peak of resident memory; file pages in it stay resident, so the rest is the anonymous peak."""

    def __init__(self) -> None:
        _warm_up()
        gc.collect()
        with contextlib.suppress(AttributeError, OSError):  # glibc: return freed memory
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):  # if not permitted, it is the peak of the whole process
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
    """Uses PyTorch's count of allocations and the device's free memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        torch.cuda.reset_peak_memory_stats(device)
        self._allocated = torch.cuda.memory_allocated(device)
        self._free = torch.cuda.mem_get_info(device)[0]

    def use(self, folder: Path) -> MemoryUse:
        peak = torch.cuda.max_memory_allocated(self._device) - self._allocated
        return MemoryUse(peak, device=self._free - torch.cuda.mem_get_info(self._device)[0])


def _status() -> dict[str, int]:
    """Bytes by the names of proc(5); empty if there is no such file."""
    try:
        text = _STATUS.read_text()
    except OSError:
        return {}
    found = re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)
    return {name: int(kilobytes) * 1024 for name, kilobytes in found}


def _mapped(files: set[str]) -> int:
    """Bytes of mapped files that are resident and unmodified."""
    total, counts = 0, False
    for line in _SMAPS.read_text(errors="surrogateescape").splitlines():
        name, _, value = line.partition(":")
        if "-" in name.partition(" ")[0]:  # each mapping starts with an address range
            counts = line.split(maxsplit=5)[-1] in files
        elif counts and name in ("Rss", "Anonymous"):
            size = int(value.removesuffix(" kB")) * 1024
            total += size if name == "Rss" else -size
    return total


def _warm_up() -> None:
    """Trigger what libraries allocate or compile on first use, so that it is not attributed to the model."""
    weight = MixedWeight(torch.ones(64, 64, dtype=torch.int8), torch.ones(64))
    with torch.inference_mode():
        for tokens in (1, 64):
            x = torch.ones(tokens, 64)
            for mode in (*MODES, None):
                mixed_linear(x, weight, mode=mode)
            dense_linear(x, torch.ones(64, 64, dtype=torch.float16))
            F.linear(x, torch.ones(64, 64))
            heads = x.view(1, 1, tokens, 64)
            F.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
            x.log_softmax(-1).argmax()
    if jit.available():
        prepare()
