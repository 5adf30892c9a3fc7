"""JSON files of a checkpoint folder, read with errors that name the file, in bounded time and memory."""

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
    """What a kind of file may hold at most."""

    nbytes: int
    values: int
    """Each takes up to 70 bytes of memory on top, however short its text."""


SETTINGS: Final = Limit(16 << 20, 1 << 20)
"""Configs, whose largest list each linear of a mixture of experts."""
INDEX: Final = Limit(512 << 20, 8 << 20)
"""A name and a file for each tensor."""
MANIFEST: Final = Limit(2 << 30, 64 << 20)
"""Ten values or so for each tensor."""
DEEPEST: Final = 64
"""Objects and lists within each other."""


def read_json(path: Path, *, limit: Limit = SETTINGS, strict: bool = False) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: the file.
        limit: what such a file may hold.
        strict: refuse what only some readers accept: a field that occurs twice, NaN and Infinity.

    Raises:
        NotFoundError: the file cannot be read, or is no regular file.
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
            dump_json(value)  # half of a surrogate pair cannot be written
    except (ValueError, RecursionError) as error:
        raise JsonFileError(f"not JSON: {error}", file=path) from error
    if not isinstance(value, dict):
        raise JsonFileError("not JSON of the expected kind", file=path, expected="an object",
                            found=type(value).__name__)  # fmt: skip
    return value


def read_optional_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file that need not be there; then an empty one.

    Raises:
        NotFoundError, JsonFileError: as ``read_json``, if it is there.
    """
    return read_json(path) if os.path.lexists(path) else {}


def read_bounded(path: Path, most: int) -> bytes:
    """A file's bytes.

    Raises:
        NotFoundError: it cannot be read, or is no regular file.
        JsonFileError: there are more than ``most``.
    """
    try:
        fd = open_regular(path)
        try:
            large = os.fstat(fd).st_size > most  # a sparse file costs its maker nothing
            data = b"" if large else read_at_most(fd, most + 1)
        finally:
            os.close(fd)
    except OSError as error:
        raise NotFoundError(f"cannot be read: {error.strerror}", file=path) from error
    if large or len(data) > most:
        raise JsonFileError("too large for a file of its kind", file=path, expected=f"at most {most:,} bytes")  # fmt: skip
    return data


def check_values(text: str, limit: Limit) -> None:
    """Raise ValueError for text of more JSON values than ``limit`` has, before they are made.

    A comma or bracket stands before each but the first.
    """
    values = sum(text.count(mark) for mark in ",[{")
    if values > limit.values:
        raise ValueError(f"{values:,} values, {limit.values:,} are the most for a file of its kind")


def _check_depth(value: object) -> None:
    """Writers and messages recurse, more deeply than the parser does."""
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
    """For ``object_pairs_hook``: a dict, or ValueError where a name occurs twice."""
    unique = dict(pairs)
    if len(unique) != len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"'{twice}' occurs twice in an object")
    return unique


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")


def dump_json(value: object) -> bytes:
    """JSON as every file of a converted folder has it: indented, insertion order, final newline."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
