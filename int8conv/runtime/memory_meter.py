"""What a model takes of memory once it runs, measured beside the prediction.

On a CPU: the peak of anonymous memory above what Python and PyTorch had before loading, plus what of the mapped weights files is
in memory, from Linux's ``/proc/self``. On a GPU: the peak of PyTorch's allocator.
"""

from __future__ import annotations

import ctypes
import gc
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F

from ..errors import ArgumentError
from ..kernels import MODES, MixedWeight, dense_linear, mixed_linear

_STATUS: Final = Path("/proc/self/status")
_SMAPS: Final = Path("/proc/self/smaps")
_RESET_PEAK: Final = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Measured:
    """Bytes at the peak."""

    weights: int
    """Of the weights files, mapped and in memory."""
    anonymous: int
    """All else that came with the model: cache, activations, weights that were cast; on a GPU everything."""
    before: int
    """What Python and PyTorch had before loading; not part of the others."""

    @property
    def total(self) -> int:
        return self.weights + self.anonymous


class MemoryMeter:
    """Start it before the model is loaded.

    Raises:
        ArgumentError: this system has no ``/proc/self/smaps``.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._on_gpu = device != "cpu"
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
            return
        if not _SMAPS.is_file():
            raise ArgumentError("measuring memory needs Linux", file=_SMAPS, found="no such file")
        _warm_up()
        gc.collect()
        with suppress(AttributeError, OSError):  # glibc: freed memory goes back to the system
            ctypes.CDLL(None).malloc_trim(0)
        with suppress(
            OSError
        ):  # not everywhere allowed: the peak is then that of the whole process
            _RESET_PEAK.write_text("5")
        self._before = _status()["RssAnon"]

    def measured(self, folder: Path) -> Measured:
        """The peak since the start, with the weights files of a folder."""
        if self._on_gpu:
            return Measured(0, torch.cuda.max_memory_allocated() - self._before, self._before)
        now = _status()
        peak = now["VmHWM"] - now["RssFile"] - now["RssShmem"]  # pages of files only come, never go
        files = {os.path.realpath(entry) for entry in folder.iterdir()}
        return Measured(_mapped(files), peak - self._before, self._before)


def _status() -> dict[str, int]:
    """Bytes of the entries in kB."""
    entries = {}
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            entries[name] = int(value.removesuffix(" kB")) * 1024
    return entries


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
