"""PyTorch pickles (``pytorch_model.bin``): where each tensor's bytes are, without running what the pickle asks for.

``pickle_machine`` runs its instructions, and can create tensors but nothing else; all that remains of a tensor is its dtype, its
shape and the offset of its bytes in the file. From there on, a pickle is read like any other file, a block of rows at a time.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn, TypeGuard

from ...errors import PickleFileError
from ..safetensors.dtypes import ITEM_BYTES
from ..safetensors.header import Header, TensorInfo
from ..safetensors.storage import LocalFile
from .pickle_machine import MOST_BYTES, Call, run_pickle
from .torch_archive import CONVERT, Place, TorchArchive

_BYTES: Final = "bytes"
"""Dtype of an untyped storage, whose tensors have dtypes of their own."""
_DTYPES: Final = {
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "bool": "BOOL",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
}
"""PyTorch's name -> safetensors' name."""
_STORAGES: Final = {
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Float": "float32",
    "Double": "float64",
    "Bool": "bool",
    "Byte": "uint8",
    "Char": "int8",
    "Short": "int16",
    "Int": "int32",
    "Long": "int64",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
    "Untyped": _BYTES,
}
"""PyTorch's names for storages of a dtype."""
_MOST_SIZE: Final = 2**63 - 1
_MOST_AXES: Final = 64
_MOST_SHARED: Final = 8
"""Largest total size of tensors as a multiple of the file's size: an embedding can have four names."""


@dataclass(frozen=True, slots=True)
class _Dtype:
    name: str


@dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: str


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: str
    key: str
    count: int
    """Number of elements, or of bytes if untyped."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    dtype: str
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_pickle(file: LocalFile) -> Header:
    """Read the tensors of a pickle as a header whose payload is the whole file.

    Raises:
        NotFoundError: the file cannot be opened.
        PickleFileError: it is not a zip file from ``torch.save``, contains anything other than named tensors, asks for
            anything else, or has a tensor that is not in the file or not in row-major order.
        TruncatedFileError: a record extends past the end of the file.
    """
    path = file.path
    with file.descriptor() as fd:
        nbytes = os.fstat(fd).st_size
        archive = TorchArchive(path, fd)
        if "byteorder" in archive and (order := archive.read("byteorder", 16)) != b"little":
            raise PickleFileError("not in little-endian byte order", file=path, hint=CONVERT,
                                  found=order.decode("ascii", "replace"))  # fmt: skip
        try:
            entries = run_pickle(archive.read("data.pkl", MOST_BYTES), _KNOWN, _storage)
        except ValueError as error:
            if isinstance(error, PickleFileError):
                raise
            raise PickleFileError(
                f"cannot be read safely: {error}", file=path, hint=CONVERT,
                expected="what torch.save writes of tensors",
            ) from error  # fmt: skip
        if not isinstance(entries, dict):
            raise PickleFileError("not a checkpoint", file=path, expected="tensors by name",
                                  found=type(entries).__name__)  # fmt: skip
        places: dict[str, Place] = {}
        found = [_locate(archive, places, path, str(n), t) for n, t in entries.items()]
    claimed = sum(info.nbytes for info in found)
    if claimed > _MOST_SHARED * nbytes:
        raise PickleFileError(
            "its tensors share their bytes too often", file=path,
            expected=f"at most {_MOST_SHARED} times the file's {nbytes} bytes", found=f"{claimed}",
        )  # fmt: skip
    ordered = sorted(found, key=lambda info: (info.begin, info.end))
    return Header({info.name: info for info in ordered}, payload_offset=0)


def _locate(
    archive: TorchArchive, places: dict[str, Place], path: Path, name: str, tensor: object
) -> TensorInfo:
    found = tensor.dtype if isinstance(tensor, _Tensor) else type(tensor).__name__
    dtype = _DTYPES.get(found)
    if not isinstance(tensor, _Tensor) or dtype is None:
        raise PickleFileError("entry is not a tensor of a known dtype", file=path, tensor=name,
                              found=found)  # fmt: skip
    count = _elements(tensor)
    if count is None:
        raise PickleFileError("tensor is not stored in row-major order", file=path, tensor=name,
                              hint="convert the checkpoint to safetensors first")  # fmt: skip
    key = tensor.storage.key
    place = places.get(key) or places.setdefault(key, archive.place(f"data/{key}"))
    begin = place.begin + tensor.offset * ITEM_BYTES[dtype]
    end = begin + count * ITEM_BYTES[dtype]
    own = tensor.storage.count * (1 if tensor.storage.dtype == _BYTES else ITEM_BYTES[dtype])
    if end > place.end or own > place.end - place.begin:
        raise PickleFileError(
            "tensor extends past the end of its storage", file=path, tensor=name,
            expected=f"at least {max(end - place.begin, own)} bytes in record 'data/{key}'",
            found=f"{place.end - place.begin}",
        )  # fmt: skip
    return TensorInfo(name, dtype, tensor.shape, begin, end)


def _elements(tensor: _Tensor) -> int | None:
    """The number of elements; None if they are not contiguous or too many."""
    if 0 in tensor.shape:
        return 0
    count = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if size != 1 and stride != count:
            return None
        count *= size
        if count > _MOST_SIZE:
            return None
    return count


def _is_sizes(value: object) -> TypeGuard[tuple[int, ...]]:
    return (
        isinstance(value, tuple)
        and len(value) <= _MOST_AXES
        and all(type(each) is int and 0 <= each <= _MOST_SIZE for each in value)
    )


def _storage(arguments: tuple[object, ...]) -> _Storage:
    """The storage that a persistent id refers to."""
    match arguments[0]:
        case ("storage", _StorageType(dtype), str(key), str(), int(count)) if count >= 0:
            return _Storage(dtype, key, count)
    raise ValueError("a malformed persistent id")


def _tensor(arguments: Sequence[object], dtype: str | None = None) -> _Tensor:
    """A tensor from storage, offset, sizes and strides; gradient flag and hooks are ignored."""
    match arguments[:4]:
        case (_Storage() as storage, int(offset), shape, strides) if (
            0 <= offset <= _MOST_SIZE and _is_sizes(shape) and _is_sizes(strides)
        ):
            if len(shape) == len(strides) and (dtype is None) == (storage.dtype != _BYTES):
                return _Tensor(dtype or storage.dtype, storage, offset, shape, strides)
    raise ValueError("a malformed tensor")


def _tensor_of_bytes(arguments: tuple[object, ...]) -> _Tensor:
    match arguments[6:7]:
        case (_Dtype(name),):
            return _tensor(arguments, name)
    raise ValueError("a malformed tensor")


def _parameter(arguments: tuple[object, ...]) -> _Tensor:
    match arguments[:1]:
        case (_Tensor() as tensor,):
            return tensor
    raise ValueError("a malformed parameter")


def _with_attributes(arguments: tuple[object, ...]) -> object:
    """A tensor with attributes, which are ignored."""
    match arguments[:3]:
        case (function, _, tuple(inner)) if function is _tensor or function is _tensor_of_bytes:
            return _tensor(inner) if function is _tensor else _tensor_of_bytes(inner)
    raise ValueError("a malformed tensor")


def _dictionary(arguments: tuple[object, ...]) -> dict[str, object]:
    """An OrderedDict as pickled by Python 2 and 3. The list of its pairs is used up: a pickle could give one to many calls."""
    found: dict[str, object] = {}
    match arguments:
        case ():
            return found
        case (list(pairs),):
            for pair in pairs:
                match pair:
                    case (str(name), value):
                        found[name] = value
                    case _:
                        raise ValueError("keys that are not text")
            pairs.clear()
            return found
    raise ValueError("keys that are not text")


def _kind(_: tuple[object, ...]) -> NoReturn:
    raise ValueError("it calls a class of tensors")


_CALLS: Final[dict[str, Call]] = {
    "collections.OrderedDict": _dictionary,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_bytes,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _with_attributes,
    "torch.Tensor": _kind,
    "torch.nn.parameter.Parameter": _kind,
}
_KNOWN: Final[dict[str, object]] = {
    **_CALLS,
    **{f"torch.{name}": _Dtype(name) for name in _DTYPES},
    **{
        f"{module}.{name}Storage": _StorageType(dtype)
        for module in ("torch", "torch.cuda", "torch.storage")
        for name, dtype in _STORAGES.items()
    },
}
