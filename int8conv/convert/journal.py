"""What a conversion has done so far, so that the same command goes on where it was stopped.

A text file of JSON lines in the workspace: first the fingerprint of source and options, then a line for each tensor written.
Nothing is flushed to disk on the way: after a power loss a line may stand there whose bytes do not, so whoever goes on
reads the bytes of every line back and believes its checksums only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

JOURNAL_FILE = "journal.jsonl"


class Journal:
    """The journal of a workspace; lines go to the operating system as they come."""

    def __init__(self, workspace: Path, fingerprint: str) -> None:
        self._path = workspace / JOURNAL_FILE
        lines = _read(self._path)
        self.resumed = bool(lines) and lines[0].get("fingerprint") == fingerprint
        """Whether the workspace is of the same source and options; else what is in it is of no use."""
        self.outdated = bool(lines) and not self.resumed
        """Whether it is of another source or other options."""
        self.entries: dict[str, Any] = {}
        """What was recorded, by key; the last line of a key counts."""
        if not self.resumed:
            lines = [{"fingerprint": fingerprint}]
        self.entries = {line["key"]: line["value"] for line in lines[1:]}
        self._path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def record(self, key: str, value: Any) -> None:
        """Add a line, in one write: it is there whole or cut off at the end of the file."""
        self.entries[key] = value
        with self._path.open("ab", buffering=0) as file:
            file.write((json.dumps({"key": key, "value": value}) + "\n").encode())


def _read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal: the fingerprint, then entries. A line that was cut off or damaged, and all after it, do not count."""
    if not path.is_file():
        return []
    lines: list[dict[str, Any]] = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(value, dict) or set(value) != (
            {"key", "value"} if lines else {"fingerprint"}
        ):
            break
        if lines and not isinstance(value["key"], str):
            break
        lines.append(value)
    return lines
