"""Read JSON files of a checkpoint folder in bounded time and memory, with errors that name the file."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..errors import JsonFileError, NotFoundError
from .regular_file import open_regular, read_at_most


@dataclass(frozen=True)
class Limit:
    """Limits for a kind of file."""

    nbytes: int
    values: int
    """Largest number of values; each takes up to 70 bytes of memory, however short its text."""


SETTINGS: Final = Limit(16 << 20, 1 << 20)
"""Configs; the largest ones list every linear of a mixture of experts."""
INDEX: Final = Limit(512 << 20, 8 << 20)
"""Indexes: a name and a file for each tensor."""
MANIFEST: Final = Limit(2 << 30, 64 << 20)
"""Manifests: about ten values for each tensor."""
DEEPEST: Final = 64
"""Largest depth of nested objects and lists."""


def read_json(path: Path, *, limit: Limit = SETTINGS, strict: bool = False) -> dict[str, Any]:
    """Read the object in a JSON file.

    Args:
        path: the file.
        limit: limits for this kind of file.
        strict: refuse what only some readers accept: duplicate fields, NaN and Infinity.

    Raises:
        NotFoundError: the file cannot be read, or is not a regular file.
        JsonFileError: it is too large, not JSON, or not an object.
    """
    hooks: dict[str, Any] = {}
    if strict:
        hooks = {"object_pairs_hook": unique_fields, "parse_constant": _no_constant}
    try:
        text = read_bounded(path, limit.nbytes).decode("utf-8")
        check_values(text, limit)
        value = json.loads(text, **hooks)
        _check_depth(value)
        if "\\u" in text:
            dump_json(value)  # a lone surrogate cannot be written
    except (ValueError, RecursionError) as error:
        raise JsonFileError(f"not JSON: {error}", file=path) from error
    if not isinstance(value, dict):
        raise JsonFileError("unexpected JSON value", file=path, expected="an object",
                            found=type(value).__name__)  # fmt: skip
    return value


def read_optional_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file, or return an empty one if there is no file.

    Raises:
        NotFoundError, JsonFileError: as for ``read_json``, if the file exists.
    """
    return read_json(path) if os.path.lexists(path) else {}


def read_bounded(path: Path, most: int) -> bytes:
    """Read a file.

    Raises:
        NotFoundError: it cannot be read, or is not a regular file.
        JsonFileError: it has more than ``most`` bytes.
    """
    try:
        fd = open_regular(path)
        try:
            large = os.fstat(fd).st_size > most  # a sparse file costs an attacker nothing
            data = b"" if large else read_at_most(fd, most + 1)
        finally:
            os.close(fd)
    except OSError as error:
        raise NotFoundError(f"cannot be read: {error.strerror}", file=path) from error
    if large or len(data) > most:
        raise JsonFileError("the file is too large", file=path, expected=f"at most {most:,} bytes")  # fmt: skip
    return data


def check_values(text: str, limit: Limit) -> None:
    """Raise ValueError if text has more JSON values than ``limit`` allows, before they are created.

    Each value but the first is preceded by a comma or bracket.
    """
    values = sum(text.count(mark) for mark in ",[{")
    if values > limit.values:
        raise ValueError(f"{values:,} values, at most {limit.values:,} are allowed in such a file")


def _check_depth(value: object) -> None:
    """Limit nesting: writing and printing recurse more deeply than parsing."""
    level, depth = [value], 0
    while level:
        if depth >= DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} levels deep")
        depth += 1
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
            if isinstance(inner, dict | list)
        ]  # fmt: skip


def unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For ``object_pairs_hook``: a dict; raises ValueError if a name occurs twice."""
    unique = dict(pairs)
    if len(unique) != len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"'{twice}' occurs twice in an object")
    return unique


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def dump_json(value: object) -> bytes:
    """JSON as in all files of a converted folder: indented, in insertion order, with a final newline."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
