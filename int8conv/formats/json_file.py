"""JSON files of a checkpoint folder, read with errors that name the file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from ..errors import JsonFileError, NotFoundError


def read_json(path: Path, *, strict: bool = False) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: the file.
        strict: refuse what only some readers accept: a field that occurs twice, NaN and Infinity.

    Raises:
        NotFoundError: the file cannot be read.
        JsonFileError: it is not JSON, or not an object.
    """
    hooks: dict[str, Any] = {}
    if strict:
        hooks = {"object_pairs_hook": unique_fields, "parse_constant": _no_constant}
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text, **hooks)
        if "\\u" in text:
            dump_json(value)  # half of a surrogate pair cannot be written
    except OSError as error:
        raise NotFoundError(f"cannot be read: {error.strerror}", file=path) from error
    except (ValueError, RecursionError) as error:
        raise JsonFileError(f"not JSON: {error}", file=path) from error
    if not isinstance(value, dict):
        raise JsonFileError("not JSON of the expected kind", file=path, expected="an object",
                            found=type(value).__name__)  # fmt: skip
    return value


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
