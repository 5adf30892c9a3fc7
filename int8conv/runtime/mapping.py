"""Tensors as views of mapped files: no copy is made until somebody writes or converts."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from ..errors import UnsupportedDtypeError
from ..formats.checkpoint import StoredTensor

TORCH_DTYPES: Final = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "I8": torch.int8,
    "I32": torch.int32,
}
"""What the runtime can take from a file."""


class MappedFiles:
    """Maps each file once; pages are read when they are first touched, and shared with other processes."""

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}

    def tensor(self, stored: StoredTensor) -> Tensor:
        """A view of the stored tensor, in its own dtype and shape."""
        return self.fused([stored])

    def fused(self, parts: list[StoredTensor]) -> Tensor:
        """One view of tensors that lie next to each other, joined along their first axis."""
        first = parts[0]
        dtype = torch_dtype(first)
        shape = (sum(p.shape[0] for p in parts), *first.shape[1:]) if first.shape else ()
        count = sum(p.nbytes for p in parts) // dtype.itemsize
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        buffer = self._map(first.file)
        if first.offset % dtype.itemsize:  # legal in a foreign file; torch needs it aligned
            end = first.offset + count * dtype.itemsize
            data = bytearray(buffer[first.offset : end])
            return torch.frombuffer(data, dtype=dtype).reshape(shape)
        flat = torch.frombuffer(buffer, dtype=dtype, count=count, offset=first.offset)
        return flat.reshape(shape)

    def _map(self, path: Path) -> mmap.mmap:
        if path not in self._maps:
            with path.open("rb") as file:
                # copy-on-write: torch wants a writable buffer, and the file must never change
                self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._maps[path]


def read_tensor(stored: StoredTensor) -> Tensor:
    """A copy of a stored tensor through plain reads: nothing of the file stays mapped."""
    data = bytearray(stored.nbytes)
    with stored.file.open("rb", buffering=0) as file:
        file.seek(stored.offset)
        view = memoryview(data)
        while view and (count := file.readinto(view)):
            view = view[count:]
    dtype = torch_dtype(stored)
    if not data:
        return torch.empty(stored.shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).reshape(stored.shape)


def torch_dtype(stored: StoredTensor) -> torch.dtype:
    """The torch dtype of a stored tensor.

    Raises:
        UnsupportedDtypeError: the runtime cannot compute with it.
    """
    try:
        return TORCH_DTYPES[stored.dtype]
    except KeyError:
        raise UnsupportedDtypeError(
            "unsupported dtype", file=stored.file, tensor=stored.name,
            expected=" or ".join(TORCH_DTYPES), found=stored.dtype,
        ) from None  # fmt: skip
