"""What an export consists of, and how it is written: shards without padding, an index, a config, the metadata files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...formats.int8.folder import ConvertedFolder
from ...formats.int8.layout import TensorSpec, plan_plain_layout
from ...formats.int8.writer import Flusher, write_file
from ...formats.json_file import dump_json
from ...formats.safetensors.stored import StoredTensor
from ...formats.source.checkpoint import CONFIG_FILE, INDEX_FILE
from ...formats.source.matrix import MatrixReader, as_bytes
from ...formats.source.metadata_files import find_metadata_files
from ...progress import Progress, counted
from ..metadata_files import copy_metadata_file
from ..stream import open_shards

BLOCK_ELEMENTS: Final = 1 << 19
"""Number of elements in memory at a time, or one row."""

Block = tuple[str, int, npt.NDArray[Any]]
"""Name of a tensor, byte position within it, and what to write there."""


@dataclass(frozen=True)
class Part:
    """One or more tensors that are computed together."""

    specs: tuple[TensorSpec, ...]
    blocks: Callable[[], Iterator[Block]]
    """Their bytes, in any order."""


def copied(tensor: StoredTensor, name: str = "", shape: tuple[int, ...] | None = None) -> Part:
    """A tensor's bytes unchanged, under another name or shape if there is one."""
    spec = TensorSpec(name or tensor.name, tensor.dtype, tensor.shape if shape is None else shape)

    def blocks() -> Iterator[Block]:
        for first, data in MatrixReader(as_bytes(tensor), BLOCK_ELEMENTS).blocks():
            yield spec.name, first, data

    return Part((spec,), blocks)


def write_parts(
    folder: Path, source: ConvertedFolder, parts: Sequence[Part], config: dict[str, Any],
    max_shard_bytes: int, progress: Progress,
) -> int:  # fmt: skip
    """Write a checkpoint of those parts into a folder.

    Args:
        folder: an empty one.
        source: the converted folder, whose metadata files are copied.
        parts: its tensors, in the order of the shards.
        config: the contents of ``config.json``.
        max_shard_bytes: largest payload of a file (a larger tensor gets a file of its own).
        progress: called with the number of bytes written.

    Returns:
        The number of bytes in the shards.

    Raises:
        NotFoundError, TruncatedFileError, FileChangedError: the source changed in the meantime.
    """
    specs = [spec for part in parts for spec in part.specs]
    layouts = plan_plain_layout(specs, max_shard_bytes=max_shard_bytes)
    advance = counted(progress, "export", sum(spec.nbytes for spec in specs))
    shards = open_shards(folder, layouts)
    try:
        writers = {t.name: shard for shard in shards for t in shard.layout.tensors}
        with Flusher(shards):
            for part in parts:
                for name, position, array in part.blocks():
                    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
                    writers[name].write(name, data, position)
                    advance(len(data))
    finally:
        for shard in shards:
            shard.close()
    for name in find_metadata_files(source.folder, source.config).names:
        copy_metadata_file(source.folder, name, folder)
    weight_map = {t.name: layout.name for layout in layouts for t in layout.tensors}
    total = sum(spec.nbytes for spec in specs)
    write_file(folder / CONFIG_FILE, dump_json(config))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_file(folder / INDEX_FILE, dump_json(index))
    return sum(layout.nbytes for layout in layouts)
