"""Write pickles such as ``torch.save``'s, right and wrong."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class Storage:
    """Stands for a storage, by whatever persistent id."""

    def __init__(
        self, key: object = "0", count: object = 4, kind: object = torch.FloatStorage
    ) -> None:
        self.id: object = ("storage", kind, key, "cpu", count)


class Call:
    """Is pickled as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def tensor(
    storage: object = None, offset: object = 0, shape: object = (4,), strides: object = (1,)
) -> Call:
    """Of float32, and of four elements if nothing else is said."""
    return Call(
        torch._utils._rebuild_tensor_v2, storage or Storage(), offset, shape, strides, False, OrderedDict(),
    )  # fmt: skip


def dumps(value: object) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, each: object) -> object:
            return each.id if isinstance(each, Storage) else None

    data = io.BytesIO()
    Pickler(data, protocol=2).dump(value)
    return data.getvalue()


def write_archive(
    path: Path,
    data: bytes,
    records: dict[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """A zip file of a pickle and other records: one storage of 16 bytes if nothing else is said."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
        for name, content in ({"data/0": bytes(16)} if records is None else records).items():
            archive.writestr(f"archive/{name}", content)
    return path
