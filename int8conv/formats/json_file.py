"""JSON files of a checkpoint folder, read with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import JsonFileError, NotFoundError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        NotFoundError: the file cannot be read.
        JsonFileError: it is not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NotFoundError(f"cannot be read: {error.strerror}", file=path) from error
    except (ValueError, RecursionError) as error:
        raise JsonFileError(f"not JSON: {error}", file=path) from error
    if not isinstance(value, dict):
        raise JsonFileError("not JSON of the expected kind", file=path, expected="an object",
                            found=type(value).__name__)  # fmt: skip
    return value


def dump_json(value: object) -> bytes:
    """JSON as every file of a converted folder has it: indented, insertion order, final newline."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
