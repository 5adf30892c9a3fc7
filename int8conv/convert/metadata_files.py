"""Everything in a converted folder except the shards: config, index, manifest and copied files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from .. import __version__
from ..formats.hub.download import Source
from ..formats.int8.layout import ShardLayout
from ..formats.int8.manifest import FileRecord, Manifest
from ..formats.int8.names import MANIFEST_FILE, is_padding
from ..formats.int8.section import describe_groups, dump_config
from ..formats.int8.writer import write_file
from ..formats.json_file import dump_json
from ..formats.regular_file import open_to_write, write_all
from ..formats.safetensors.checksum import checksum, running_checksum
from ..formats.safetensors.storage import changed_file
from ..formats.source.checkpoint import CONFIG_FILE, INDEX_FILE, Checkpoint
from ..formats.source.metadata_files import (
    MOST_BYTES,
    find_metadata_files,
    open_metadata_file,
)
from .options import ConvertOptions
from .plan import Plan
from .stream import TaskResult

_BLOCK_BYTES: Final = 1 << 20


def make_manifest(
    source: Source,
    options: ConvertOptions,
    plan: Plan,
    results: list[TaskResult],
    calibration: dict[str, Any] | None,
) -> Manifest:
    tensors = {
        task.source.name: {
            "dtype": task.source.dtype,
            "shape": list(task.source.shape),
            "xxh3_128": result.source_checksum,
        }
        for task, result in zip(plan.tasks, results, strict=True)
    }
    return Manifest(
        generator=f"int8conv {__version__}",
        source={"id": source.id, "revision": source.revision, "tensors": tensors},
        options=options.to_json(),
        calibration=calibration,
        inputs=plan.inputs,
        rounded=sum(result.rounded for result in results),
        skipped=plan.skipped,
    )


def write_metadata_files(
    staging: Path,
    checkpoint: Checkpoint,
    options: ConvertOptions,
    layouts: list[ShardLayout],
    manifest: Manifest,
    results: list[TaskResult],
    code: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Write everything except the shards, the manifest last.

    Args:
        staging: the folder.
        checkpoint: the source.
        options: of the conversion.
        layouts: the shards.
        manifest: without files.
        results: of the tasks, with checksums.
        code: modules to add, by name.
    """
    groups = describe_groups(
        manifest.inputs, {t.name: t.dtype for each in layouts for t in each.tensors}
    )
    files = {CONFIG_FILE: dump_config(checkpoint.config, options.outliers, options.dtype, groups)}
    weight_map = {
        t.name: layout.name for layout in layouts for t in layout.tensors if not is_padding(t.name)
    }
    total = sum(layout.nbytes - len(layout.header) for layout in layouts)
    files[INDEX_FILE] = dump_json({"metadata": {"total_size": total}, "weight_map": weight_map})
    files |= code
    copied = find_metadata_files(checkpoint.folder, checkpoint.config).names
    records = {
        name: copy_metadata_file(checkpoint.folder, name, staging)
        for name in copied if name not in code
    }  # fmt: skip
    records |= {name: FileRecord(len(data), checksum(data)) for name, data in files.items()}
    sums = {name: value for result in results for name, value in result.checksums.items()}
    for layout in layouts:
        tensors = {t.name: sums[t.name] for t in layout.tensors if not is_padding(t.name)}
        records[layout.name] = FileRecord(
            layout.nbytes, checksum(layout.header), len(layout.header), tensors
        )
    files[MANIFEST_FILE] = dump_json(replace(manifest, files=records).to_json())
    for name, data in files.items():
        write_file(staging / name, data)


def copy_metadata_file(folder: Path, name: str, staging: Path) -> FileRecord:
    """A file as it is, block by block.

    Raises:
        NotFoundError, FileChangedError: it was removed, or has grown beyond the limit, since it was listed.
    """
    running, nbytes = running_checksum(), 0
    target = staging / name
    target.parent.mkdir(exist_ok=True)
    with (
        open(open_metadata_file(folder, name), "rb", buffering=0) as source,
        open(open_to_write(target), "r+b", buffering=0) as copy,
    ):
        copy.truncate(0)
        while block := source.read(_BLOCK_BYTES):
            nbytes += len(block)
            if nbytes > MOST_BYTES:  # it was smaller when it was listed
                raise changed_file(folder / name)
            running.update(block)
            write_all(copy.fileno(), block)
        os.fsync(copy.fileno())
    return FileRecord(nbytes, running.hexdigest())
