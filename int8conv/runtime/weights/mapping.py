"""Tensors as views of mapped files, without a copy until they are written to or converted."""

from __future__ import annotations

import mmap
from typing import Any, Final

import numpy.typing as npt
import torch
from torch import Tensor

from ...errors import UnsupportedDtypeError
from ...formats.safetensors.mapped import check_length, map_file
from ...formats.safetensors.storage import LocalFile, WeightsFile
from ...formats.safetensors.stored import StoredTensor
from ...formats.source.matrix import Matrix, MatrixReader

TORCH_DTYPES: Final = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I8": torch.int8,
    "I32": torch.int32,
}
"""Dtypes that the runtime can read from a file."""
_BLOCK_ELEMENTS: Final = 1 << 18


class MappedFiles:
    """Maps each file once; pages are read on first access and shared with other processes."""

    def __init__(self) -> None:
        self._maps: dict[LocalFile, mmap.mmap] = {}

    def tensor(self, stored: StoredTensor) -> Tensor:
        """A view of the stored tensor, in its dtype and shape."""
        return self.fused([stored])

    def fused(self, parts: list[StoredTensor]) -> Tensor:
        """One view of adjacent tensors, concatenated along their first axis."""
        first = parts[0]
        dtype = torch_dtype(first)
        shape = (sum(p.shape[0] for p in parts), *first.shape[1:]) if first.shape else ()
        count = sum(p.nbytes for p in parts) // dtype.itemsize
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        buffer = self._map(first.file)
        if first.offset % dtype.itemsize:  # allowed in foreign files, but torch needs alignment
            end = first.offset + count * dtype.itemsize
            data = bytearray(buffer[first.offset : end])
            return torch.frombuffer(data, dtype=dtype).reshape(shape)
        flat = torch.frombuffer(buffer, dtype=dtype, count=count, offset=first.offset)
        return flat.reshape(shape)

    def check(self) -> None:
        """Raise FileChangedError if a mapped file has been changed in place since its header was read."""
        for file, mapping in self._maps.items():
            check_length(mapping)
            file.check_unchanged()

    def _map(self, file: WeightsFile) -> mmap.mmap:
        assert isinstance(file, LocalFile)  # nothing else is mapped
        if file not in self._maps:
            self._maps[file] = map_file(file)
        return self._maps[file]


def read_tensor(stored: StoredTensor) -> Tensor:
    """A copy of a stored tensor by plain reads, without mapping the file."""
    data = bytearray(stored.nbytes)
    with stored.file.open(stored.offset + stored.nbytes) as reader:
        reader.read_into(memoryview(data), stored.offset)
    dtype = torch_dtype(stored)
    if not data:
        return torch.empty(stored.shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).reshape(stored.shape)


def read_matrix(matrix: Matrix) -> Tensor:
    """A matrix as float32 ``[out, in]`` that is stored differently: FP8 with scales, or transposed."""
    whole = torch.empty(matrix.shape, dtype=torch.float32)
    for first, bits in MatrixReader(matrix, _BLOCK_ELEMENTS).blocks():
        whole[first : first + len(bits)] = from_bits(bits, matrix.dtype)
    return whole


def from_bits(bits: npt.NDArray[Any], dtype: str) -> Tensor:
    """A view of the bits of numbers, 16 or 32 of them, as a tensor of their safetensors dtype."""
    signed = bits.view(f"i{bits.itemsize}")  # torch converts few unsigned arrays
    return torch.from_numpy(signed).view(TORCH_DTYPES[dtype])


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
