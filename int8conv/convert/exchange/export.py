"""``export_checkpoint``: a converted folder, or for GGUF its source, in a layout of other tools."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from ...errors import ArgumentError, OutputExistsError
from ...formats.int8.folder import ConvertedFolder, FolderLike, open_folder
from ...formats.int8.verify import verify
from ...formats.int8.workspace import open_workspace
from ...formats.source.checkpoint import open_checkpoint
from ...progress import Progress, silent
from ..options import DEFAULT_SHARD_BYTES
from .compressed_tensors import compressed_config, compressed_parts
from .dense import DTYPES, dense_config, dense_parts, usual_dtype
from .gguf_file import write_gguf
from .parts import write_parts

Target = Literal["dense", "compressed-tensors", "gguf"]
TARGETS: Final[tuple[Target, ...]] = ("dense", "compressed-tensors", "gguf")


@dataclass(frozen=True)
class ExportReport:
    """What an export did; sizes in bytes."""

    tensors: int
    """Tensors written."""
    linears: int
    """Quantized linears among what was exported."""
    dtype: str | None
    """Dtype of weights; None if they are int8 or Q8_0."""
    bytes_out: int
    """Size of the shards."""
    seconds: float
    folded: dict[str, float | None] = field(default_factory=dict)
    """SQNR in dB of each linear whose outlier columns were folded, against its own dequantized weight; None if nothing was lost."""
    notes: tuple[str, ...] = ()
    """Notes for the user."""


def export_checkpoint(
    path: FolderLike,
    out: str | os.PathLike[str],
    *,
    to: Target = "dense",
    dtype: str | None = None,
    fold_outliers: bool = False,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Progress = silent,
) -> ExportReport:
    """Write a converted folder as a checkpoint for other tools, after verifying every byte of it.

    Args:
        path: the converted folder, its hub id, or an opened folder; for GGUF the source, an unconverted checkpoint or its hub id.
        out: the folder, or GGUF file, to create; it appears complete or not at all, and nothing is replaced.
        to: ``"dense"`` is a plain checkpoint of the dequantized weights, as transformers loads it; ``"compressed-tensors"`` a W8A8
            checkpoint (``int-quantized``) with the same codes and scales; ``"gguf"`` a file for llama.cpp.
        dtype: of a dense checkpoint: ``"float16"``, ``"bfloat16"`` or ``"float32"``; None: the one that the config names. For GGUF, that
            of matrices; None: Q8_0.
        fold_outliers: for compressed-tensors, which has no outlier columns: quantize linears that have some once more, without.
        max_shard_bytes: largest payload of an output file (a larger tensor gets a file of its own).
        progress: called as the work proceeds.

    Raises:
        ArgumentError: an option that cannot be, or outlier columns that are not to be folded.
        NotConvertedError, ConvertedFormatError, CheckpointError, SafetensorsError: ``path`` is no valid converted folder.
        UnsupportedModelError, UnsupportedFeatureError: the layout cannot represent this model.
        AlreadyQuantizedError, TokenizerError, NonFiniteWeightError: for GGUF, the source is a converted folder, has a tokenizer that
            llama.cpp lacks, or a weight that is NaN or infinite.
        HalfOverflowError: a value does not fit the dtype.
        NotFoundError, HubError: the folder cannot be read.
        OutputError: the output exists, cannot be written, or does not fit the disk.
    """
    start, out = time.perf_counter(), Path(out)
    _check_options(to, dtype, fold_outliers, max_shard_bytes)
    _check_new(out)
    if to == "gguf":
        if isinstance(path, ConvertedFolder):
            path = path.folder
        made = write_gguf(path, out, progress, dtype)
        seconds = time.perf_counter() - start
        return ExportReport(made.tensors, made.linears, dtype, made.bytes_out, seconds, notes=made.notes)  # fmt: skip
    converted = open_folder(path)
    named, costs = None, dict[str, float | None]()
    if to == "dense":
        named = dtype or usual_dtype(converted.config)
        parts = list(dense_parts(converted, DTYPES[named]))
        config = dense_config(converted.config, named)
    else:
        parts = list(compressed_parts(converted, costs, fold=fold_outliers))
        config = compressed_config(converted)
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
        folded=costs,
        notes=(*_lost(converted, to), *workspace.notes),
    )


def _lost(converted: ConvertedFolder, to: Target) -> Iterator[str]:
    """What the other layout does not have, although no weight differs."""
    inputs = [group for group in converted.manifest.inputs if group.threshold is not None]
    if to == "compressed-tensors" and inputs:
        yield (
            f"compressed-tensors has no outlier fallback: all activations of {len(inputs)} inputs with a threshold become int8"
        )


def _check_options(to: str, dtype: str | None, fold: bool, max_shard_bytes: int) -> None:
    if to not in TARGETS:
        raise ArgumentError("to", expected=" or ".join(TARGETS), found=to)
    if dtype is not None and dtype not in DTYPES:
        raise ArgumentError("dtype", expected=" or ".join(DTYPES), found=dtype)
    if dtype is not None and to not in ("dense", "gguf"):
        raise ArgumentError("dtype is an option of dense checkpoints and GGUF", found=f"to {to}")
    if fold and to != "compressed-tensors":
        raise ArgumentError("only compressed-tensors has outlier columns to fold", found=f"to {to}")
    if max_shard_bytes < 1:
        raise ArgumentError("max_shard_bytes", expected="1 or more", found=max_shard_bytes)


def _check_new(out: Path) -> None:
    if os.path.lexists(out):
        raise OutputExistsError("output already exists, and an export replaces nothing", file=out,
                                hint="remove it yourself, or choose another output")  # fmt: skip
