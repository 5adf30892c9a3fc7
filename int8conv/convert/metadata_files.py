"""Everything of a converted folder but the shards: config, index, manifest, and what is copied."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from .. import __version__
from ..errors import NotFoundError
from ..formats.hub.download import Source
from ..formats.int8.layout import ShardLayout
from ..formats.int8.manifest import FileRecord, Manifest
from ..formats.int8.names import MANIFEST_FILE, QUANT_METHOD, VERSION, is_padding
from ..formats.int8.writer import write_file
from ..formats.json_file import dump_json
from ..formats.safetensors.checksum import checksum
from ..formats.source.checkpoint import CONFIG_FILE, INDEX_FILE, Checkpoint
from .options import ConvertOptions
from .plan import Plan
from .stream import TaskResult


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
        options=asdict(options),
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
) -> None:
    """Everything but the shards; the manifest last."""
    section = {"quant_method": QUANT_METHOD, "version": VERSION, "outliers": options.outliers}
    section["dtype"] = options.dtype
    files = {CONFIG_FILE: dump_json(checkpoint.config | {"quantization_config": section})}
    files |= dict(_copied_files(checkpoint.folder))
    weight_map = {
        t.name: layout.name for layout in layouts for t in layout.tensors if not is_padding(t.name)
    }
    total = sum(layout.nbytes - len(layout.header) for layout in layouts)
    files[INDEX_FILE] = dump_json({"metadata": {"total_size": total}, "weight_map": weight_map})
    records = {name: FileRecord(len(data), checksum(data)) for name, data in files.items()}
    sums = {name: value for result in results for name, value in result.checksums.items()}
    for layout in layouts:
        tensors = {t.name: sums[t.name] for t in layout.tensors if not is_padding(t.name)}
        records[layout.name] = FileRecord(
            layout.nbytes, checksum(layout.header), len(layout.header), tensors
        )
    files[MANIFEST_FILE] = dump_json(replace(manifest, files=records).to_json())
    for name, data in files.items():
        write_file(staging / name, data)


_COPIED_SUFFIXES: Final = {".json", ".txt", ".model", ".jinja", ".tiktoken"}
_COPIED_PREFIXES: Final = ("LICENSE", "NOTICE", "USE_POLICY")


def _copied_files(folder: Path) -> list[tuple[str, bytes]]:
    """Tokenizer, generation and licence files, as they are."""
    copied = []
    for path in sorted(folder.iterdir()):
        name = path.name
        wanted = path.suffix in _COPIED_SUFFIXES or name.startswith(_COPIED_PREFIXES)
        own = name in (CONFIG_FILE, MANIFEST_FILE) or name.endswith(".index.json")
        if wanted and not own and path.is_file():
            try:
                copied.append((name, path.read_bytes()))
            except OSError as error:
                raise NotFoundError(f"cannot be read: {error.strerror}", file=path) from error
    return copied
