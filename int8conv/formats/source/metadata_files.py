"""The files of a model other than weights: tokenizer, generation, processors, custom code, licence; recognized by name.

Anything else in the folder (a corpus, training logs, files of other quantizers or trainers) is not copied.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from ...errors import Int8convError, NotFoundError
from ..int8.names import MANIFEST_FILE, TEMPLATES_FOLDER, is_plain_file_name
from ..json_file import read_json
from ..regular_file import open_within
from .checkpoint import CONFIG_FILE
from .git_lfs import check_not_pointer
from .weight_files import INDEX_SUFFIX, some, weights_like

NAMES: Final = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "generation_config.json", "chat_template.json", "*.jinja", "merges.txt", "encoder.json",
    "*vocab*.json", "*vocab*.txt", "*vocab*.bpe", "*.model", "*.model.v*", "*.spm", "*.tiktoken",
    "tekken.json", "bpe.codes", "dict.txt", "normalizer.json", "params.json",
    "*processor_config.json", "configuration.json",
    "LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "USE_POLICY*",
)  # fmt: skip
"""``fnmatch`` patterns."""
CODE: Final = "*.py"
"""Files in which ``auto_map`` may name custom classes."""
MOST_BYTES: Final = 256 << 20
"""Largest size of a file: the largest vocabularies take about 40 MB."""
MOST_TEMPLATES: Final = 64
"""Limit on templates in a separate folder; a model has two or three."""

_WITH_CODE: Final = (
    "tokenizer_config.json", "processor_config.json", "preprocessor_config.json",
)  # fmt: skip
_UNMENTIONED: Final = ("README*", ".*", "*.gguf", "*.onnx", "*.h5", "*.msgpack", CONFIG_FILE, MANIFEST_FILE)  # fmt: skip
"""Files that are not copied and need no note."""


@dataclass(frozen=True)
class MetadataFiles:
    """Names within the folder, and notes on what is left out."""

    names: tuple[str, ...]
    notes: tuple[str, ...]


def find_metadata_files(folder: Path, config: Mapping[str, Any]) -> MetadataFiles:
    """Find the files that belong to a model.

    Raises:
        NotFoundError: one cannot be read.
        PointerFileError: one is only a Git LFS pointer.
    """
    with_code = _has_code(folder, config)
    names, others, templates = [], [], 0
    for name in sorted(_listed(folder)):
        if (
            name.endswith(INDEX_SUFFIX)
            or weights_like([name]) == name
            or _matches(name, _UNMENTIONED)
        ):
            continue
        inner = name.startswith(f"{TEMPLATES_FOLDER}/") and name.endswith(".jinja")
        wanted = inner or _matches(name, NAMES) or (with_code and fnmatchcase(name, CODE))
        templates += inner
        if inner and templates > MOST_TEMPLATES:
            reason: str | None = f"more than {MOST_TEMPLATES} templates"
        else:
            reason = _why_not(folder, name) if wanted else ""
        if reason is None:
            names.append(name)
        else:
            others.append(name + (f" ({reason})" if reason else ""))
    notes = (f"files that are not copied ({len(others)}): {some(others)}",) if others else ()
    return MetadataFiles(tuple(names), notes)


def open_metadata_file(folder: Path, name: str) -> int:
    """Open one of them for reading; returns a descriptor.

    Raises:
        NotFoundError: it cannot be read, or is a link out of the folder.
    """
    try:
        return open_within(folder, name)
    except OSError as error:
        raise NotFoundError(f"cannot be read: {error.strerror}", file=folder / name) from error


def _listed(folder: Path) -> Iterator[str]:
    for path in folder.iterdir():
        if not path.is_dir():
            yield path.name
    templates = folder / TEMPLATES_FOLDER
    if templates.is_dir() and not templates.is_symlink():
        for path in templates.iterdir():
            if path.is_file():
                yield f"{TEMPLATES_FOLDER}/{path.name}"


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _why_not(folder: Path, name: str) -> str | None:
    """Why a metadata file is not copied; None if it is."""
    last = name.rpartition("/")[2]
    if not is_plain_file_name(last) or not last.isprintable():
        return "its name"
    path = folder / name
    if not path.is_file():
        return "a link to a file that does not exist" if path.is_symlink() else "not a regular file"
    target = Path(os.path.realpath(folder / name))
    try:
        fd = open_within(folder, name)
    except OSError as error:
        if not target.is_file():
            raise NotFoundError(f"cannot be read: {error.strerror}", file=folder / name) from error
        if os.access(target, os.R_OK):
            return str(error.strerror)
        raise NotFoundError(f"cannot be read: {error.strerror}", file=folder / name) from error
    try:
        size = os.fstat(fd).st_size
    finally:
        os.close(fd)
    if size > MOST_BYTES:
        return f"{size >> 20} MiB"
    check_not_pointer(folder / name)
    return None


def _has_code(folder: Path, config: Mapping[str, Any]) -> bool:
    if config.get("auto_map"):
        return True
    for name in _WITH_CODE:
        try:
            if (folder / name).is_file() and read_json(folder / name).get("auto_map"):
                return True
        except Int8convError:
            continue
    return False
