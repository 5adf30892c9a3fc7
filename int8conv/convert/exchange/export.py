"""``export_checkpoint``: a converted folder in a layout of other tools."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from ...errors import ArgumentError, OutputExistsError
from ...formats.int8.folder import FolderLike, open_folder
from ...formats.int8.verify import verify
from ...formats.int8.workspace import open_workspace
from ...formats.source.checkpoint import open_checkpoint
from ...progress import Progress, silent
from ..options import DEFAULT_SHARD_BYTES
from .dense import DTYPES, dense_config, dense_parts, usual_dtype
from .parts import write_parts

Target = Literal["dense"]
TARGETS: Final[tuple[Target, ...]] = ("dense",)


@dataclass(frozen=True)
class ExportReport:
    """What an export did; sizes in bytes."""

    tensors: int
    """Tensors written."""
    linears: int
    """Quantized linears among what was exported."""
    dtype: str | None
    """Dtype of dequantized weights."""
    bytes_out: int
    """Size of the shards."""
    seconds: float
    notes: tuple[str, ...] = ()
    """Notes for the user."""


def export_checkpoint(
    path: FolderLike,
    out: str | os.PathLike[str],
    *,
    to: Target = "dense",
    dtype: str | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Progress = silent,
) -> ExportReport:
    """Write a converted folder as a checkpoint for other tools, after verifying every byte of it.

    Args:
        path: the converted folder, its hub id, or an opened folder.
        out: the folder to create; it appears complete or not at all, and nothing is replaced.
        to: ``"dense"`` is a plain checkpoint of the dequantized weights, as transformers loads it.
        dtype: of a dense checkpoint: ``"float16"``, ``"bfloat16"`` or ``"float32"``; None: the one that the config names.
        max_shard_bytes: largest payload of an output file (a larger tensor gets a file of its own).
        progress: called as the work proceeds.

    Raises:
        ArgumentError: an option that cannot be.
        NotConvertedError, ConvertedFormatError, CheckpointError, SafetensorsError: ``path`` is no valid converted folder.
        UnsupportedModelError: the layout cannot represent this model.
        HalfOverflowError: a value does not fit the dtype.
        NotFoundError, HubError: the folder cannot be read.
        OutputError: the output exists, cannot be written, or does not fit the disk.
    """
    start, out = time.perf_counter(), Path(out)
    _check_options(to, dtype, max_shard_bytes)
    _check_new(out)
    converted = open_folder(path)
    named = dtype or usual_dtype(converted.config)
    parts = list(dense_parts(converted, DTYPES[named]))
    config = dense_config(converted.config, named)
    with open_workspace(out, source=converted.folder) as workspace:
        verify(converted, progress=progress)
        workspace.clear()
        written = write_parts(workspace.folder, converted, parts, config, max_shard_bytes, progress)
        open_checkpoint(workspace.folder)
        workspace.commit()
    return ExportReport(
        tensors=sum(len(part.specs) for part in parts),
        linears=len(converted.linears),
        dtype=named,
        bytes_out=written,
        seconds=time.perf_counter() - start,
        notes=tuple(workspace.notes),
    )


def _check_options(to: str, dtype: str | None, max_shard_bytes: int) -> None:
    if to not in TARGETS:
        raise ArgumentError("to", expected=" or ".join(TARGETS), found=to)
    if dtype is not None and dtype not in DTYPES:
        raise ArgumentError("dtype", expected=" or ".join(DTYPES), found=dtype)
    if max_shard_bytes < 1:
        raise ArgumentError("max_shard_bytes", expected="1 or more", found=max_shard_bytes)


def _check_new(out: Path) -> None:
    if os.path.lexists(out):
        raise OutputExistsError("output already exists, and an export replaces nothing", file=out,
                                hint="remove it yourself, or choose another output")  # fmt: skip
