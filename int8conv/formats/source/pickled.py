"""PyTorch pickles (``pytorch_model.bin``): where each tensor's bytes lie, without running what the pickle asks for.

``torch.load`` reads the pickle with ``weights_only``, which builds tensors and nothing else, and into fake tensors, which
have no storage: what is left of each is its dtype, its shape, and the offset of its bytes in the file. From there a pickle is
read like any other file, a block of rows at a time.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

from ...errors import NotFoundError, PickleFileError, TruncatedFileError
from ..safetensors.dtypes import ITEM_BYTES
from ..safetensors.header import Header, TensorInfo


def read_pickle(path: Path) -> Header:
    """The tensors of a pickle, as a header whose payload is the whole file.

    Raises:
        NotFoundError: the file cannot be opened.
        PickleFileError: it is no zip file of ``torch.save``, holds something else than tensors by name, or a tensor whose
            elements do not stand in row order.
        TruncatedFileError: a tensor passes the file's end.
    """
    entries = _load(path)
    if not isinstance(entries, dict):
        raise PickleFileError("not a checkpoint", file=path, expected="tensors by name",
                              found=type(entries).__name__)  # fmt: skip
    size = path.stat().st_size
    tensors = {}
    for name, tensor in entries.items():
        info = _locate(path, str(name), tensor)
        if info.end > size:
            raise TruncatedFileError(
                "offsets pass the end of the file", file=path, tensor=info.name,
                expected=f"at least {info.end} bytes", found=f"{size}",
            )  # fmt: skip
        tensors[info.name] = info
    ordered = sorted(tensors.values(), key=lambda info: (info.begin, info.end))
    return Header({info.name: info for info in ordered}, payload_offset=0)


def _load(path: Path) -> Any:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise NotFoundError(f"cannot be read: {error.strerror}", file=path) from error
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    log = logging.getLogger("torch._subclasses.fake_tensor")
    heard, log.disabled = log.disabled, True  # the error says what it would
    try:
        with FakeTensorMode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old storage classes that a pickle may name
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a malformed file leads to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PickleFileError(
            f"cannot be read safely: {reason}", file=path, expected="what torch.save writes of tensors",
            hint="convert it to safetensors where you trust it",
        ) from error  # fmt: skip
    finally:
        log.disabled = heard


def _locate(path: Path, name: str, tensor: Any) -> TensorInfo:
    dtype = _DTYPES.get(str(getattr(tensor, "dtype", None)).removeprefix("torch."))
    if dtype is None:
        raise PickleFileError("entry is not a tensor of a known dtype", file=path, tensor=name,
                              found=str(getattr(tensor, "dtype", type(tensor).__name__)))  # fmt: skip
    start = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    if start is None or not tensor.is_contiguous():
        raise PickleFileError("tensor is not stored in row-major order", file=path, tensor=name,
                              hint="convert the checkpoint to safetensors first")  # fmt: skip
    begin = start + tensor.storage_offset() * ITEM_BYTES[dtype]
    end = begin + tensor.numel() * ITEM_BYTES[dtype]
    return TensorInfo(name, dtype, tuple(tensor.shape), begin, end)


_DTYPES = {
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
}
