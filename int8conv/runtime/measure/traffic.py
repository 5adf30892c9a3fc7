"""Bytes of weights read per decode step, and the memory bandwidth of this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from math import prod
from typing import Final

import torch

from ...formats.safetensors.storage import LocalFile, WeightsFile
from ...formats.source.checkpoint import Checkpoint
from ..models.architecture import Architecture, Module
from ..opening import OpenedModel

HOST_BYTES: Final = 512 << 20
"""Bytes read to measure a CPU's bandwidth: more than fit its caches."""
DEVICE_BYTES: Final = 1 << 30
_REPEATS: Final = 7
_SAMPLES: Final = 1024
_PAGE: Final = 4096


def step_bytes(opened: OpenedModel, dtype: torch.dtype, batch: int = 1) -> int:
    """Bytes of weights read per step of one token for each of ``batch`` sequences, from headers alone.

    Every tensor of linears, head and norms counts once; embeddings that are not also the head do not count, as a step looks up one
    row per token. Tensors of a converted folder count with their size in the file, those of a source in ``dtype``. For a mixture of
    experts, the expected number of experts used by ``batch`` tokens counts, if all are equally likely.
    """
    total, converted, form = 0.0, opened.converted, opened.architecture
    for module in form.modules:
        linear = converted.linears.get(module.path) if converted else None
        if linear is not None:
            size = sum(tensor.nbytes for tensor in linear.tensors())
        else:
            size = _stored(opened.checkpoint, module, None if converted else dtype.itemsize)
        total += size * _share_read(form, module, batch)
    return round(total)


def _stored(checkpoint: Checkpoint, module: Module, itemsize: int | None) -> int:
    names = {module.tensor_name(kind) for kind in ("weight", "bias")}
    found = [checkpoint.tensors[name] for name in names if name in checkpoint.tensors]
    return sum(t.nbytes if itemsize is None else prod(t.shape) * itemsize for t in found)


def _share_read(form: Architecture, module: Module, batch: int) -> float:
    """The fraction of a module that a step reads."""
    if module.kind == "embedding":
        return float(module.role == "embed" and form.config.tied)
    experts = form.config.experts
    if experts is None or not module.role.partition(".")[0].isdecimal():
        return 1.0
    return float(1 - (1 - experts.used / experts.count) ** batch)


def bandwidth(device: torch.device) -> float:
    """Bytes per second, best of several runs: on a GPU for a copy within its memory (read plus written), on a CPU for PyTorch
    summing the rows of a float32 matrix."""
    if device.type == "cuda":
        source = torch.empty(DEVICE_BYTES, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        return 2 * source.nbytes / _least_seconds(lambda: target.copy_(source), device)
    rows = torch.ones(max(HOST_BYTES >> 18, 1), 1 << 16)
    return rows.nbytes / _least_seconds(lambda: rows.sum(dim=1), device)


def _least_seconds(call: Callable[[], object], device: torch.device) -> float:
    call()
    times = []
    for _ in range(_REPEATS):
        started = now(device)
        call()
        times.append(now(device) - started)
    return min(times)


def now(device: torch.device) -> float:
    """The time in seconds, once the device has finished all work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def cached_fraction(files: Iterable[WeightsFile]) -> float | None:
    """The fraction of files in the system's page cache, from samples; None if the system does not say.

    A page is not in the cache if a read would have to wait for it (``RWF_NOWAIT``, preadv2(2)).
    """
    flag = getattr(os, "RWF_NOWAIT", None)
    local = [file for file in files if isinstance(file, LocalFile) and file.size()]
    if flag is None or not local:
        return None
    total = sum(file.size() for file in local)
    there = count = 0
    for file in local:
        size, pages = file.size(), -(-file.size() // _PAGE)
        samples = min(pages, max(1, _SAMPLES * size // total))
        fd = os.open(file.path, os.O_RDONLY)
        try:
            for i in range(samples):
                count += 1
                there += _has_page(fd, i * pages // samples * _PAGE, flag)
        except OSError:  # not supported by this file system
            return None
        finally:
            os.close(fd)
    return there / count


def _has_page(fd: int, offset: int, flag: int) -> bool:
    try:
        return os.preadv(fd, [bytearray(1)], offset, flag) == 1
    except BlockingIOError:
        return False
