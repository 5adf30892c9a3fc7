"""Files in the page cache to the device: through the pinned stages, against a plain copy of as many bytes from pinned memory.

Pinning counts, as a program loads once. "registered": the mapped file itself is pinned instead (cudaHostRegister), and copied.
"""

from __future__ import annotations

import contextlib
import mmap
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch

from int8conv.formats.source.checkpoint import open_checkpoint
from int8conv.runtime.backends.gpu.files import DeviceFiles, DeviceTensors
from int8conv.runtime.backends.gpu.staging import Staging
from int8conv.runtime.measure.traffic import cached_fraction
from int8conv.runtime.weights.mapping import TORCH_DTYPES

from .random_folder import folders
from .session import F16, Row, Session, out_of_time, skipped
from .timing import now

RUNS = 3
_PLAIN_BYTES = 1 << 30


def rows(session: Session) -> Iterator[Row]:
    """GB/s, and the share of the plain copy."""
    source, converted = folders(session.scratch, session.model, session.pick(2, 4), session.device)
    size = sum(path.stat().st_size for path in converted.glob("*.safetensors"))
    plain = _plain_copy(session, size)
    yield {"what": "plain pinned copy", "GB": size * 1e-9, "GB/s": plain * 1e-9, "share of plain": 1.0}  # fmt: skip

    def row(what: str, folder: Path, *, dtype: torch.dtype | None = None, readers: int | None = None, stage: int = 8) -> Row:  # fmt: skip
        of = {"what": what, "readers": readers or "default", "stage MiB": stage}
        if session.left() < 0:
            return out_of_time(of)
        speeds = [_load(session, folder, dtype, readers, stage << 20) for _ in range(RUNS)]
        files = [t.file for t in open_checkpoint(folder).tensors.values()][:1]
        return of | {
            "GB/s": statistics.median(speeds) * 1e-9, "share of plain": statistics.median(speeds) / plain,
            "in page cache": cached_fraction(files),
        }  # fmt: skip

    yield row("converted", converted)
    yield row("source, float16", source, dtype=F16)
    yield row("source, float16 to bfloat16", source, dtype=torch.bfloat16)
    for readers, stage in session.pick([(2, 1)], [(1, 8), (2, 8), (4, 8), (16, 8), (8, 2), (8, 32), (16, 4)]):  # fmt: skip
        yield row("converted", converted, readers=readers, stage=stage)
    yield _registered(session, next(converted.glob("*.safetensors")), plain)


def _load(session: Session, folder: Path, dtype: torch.dtype | None, readers: int | None, stage: int) -> float:  # fmt: skip
    """Bytes a second of a whole folder, as it is or as a source."""
    session.forget()
    with contextlib.suppress(AttributeError, RuntimeError):  # pinned memory that PyTorch keeps
        torch._C._host_emptyCache()
    found = open_checkpoint(folder).tensors.values()
    tensors = [tensor for tensor in found if tensor.dtype in TORCH_DTYPES]  # no padding
    staging = Staging(session.device, readers=readers, stage_bytes=stage)
    if dtype is None:
        files: DeviceFiles | DeviceTensors = DeviceFiles(session.device, staging)
    else:
        files = DeviceTensors(tensors, dtype, session.device, staging)
    for tensor in tensors:
        files.tensor(tensor)
    return files.finish().speed


def _plain_copy(session: Session, size: int) -> float:
    """Bytes a second from pinned memory, which lies there already."""
    part = min(size, _PLAIN_BYTES)
    pinned = torch.ones(part, dtype=torch.uint8)
    pinned = pinned.pin_memory() if session.on_gpu else pinned
    target = torch.empty(part, dtype=torch.uint8, device=session.device)
    times = []
    for _ in range(RUNS + 1):
        started = now(session.device)
        for _ in range(-(-size // part)):
            target.copy_(pinned, non_blocking=True)
        times.append((now(session.device) - started) / (-(-size // part)))
    return part / statistics.median(times[1:])


def _registered(session: Session, path: Path, plain: float) -> Row:
    of = {"what": "registered mapping", "readers": 0}
    if not session.on_gpu:
        return skipped(of, "no GPU")
    runtime, size = torch.cuda.cudart(), path.stat().st_size
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    host = torch.frombuffer(mapped, dtype=torch.uint8)
    target = torch.empty(size, dtype=torch.uint8, device=session.device)
    started = now(session.device)
    code = int(runtime.cudaHostRegister(host.data_ptr(), size, 0))
    if code:
        with contextlib.suppress(
            RuntimeError
        ):  # reads the runtime's last error, which the next launch would raise
            target[:1].fill_(0)
        return skipped(of, f"cudaHostRegister gives error {code}")
    target.copy_(host, non_blocking=True)
    took = now(session.device) - started
    runtime.cudaHostUnregister(host.data_ptr())
    return of | {"GB/s": size / took * 1e-9, "share of plain": size / took / plain}
