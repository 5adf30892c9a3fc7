"""What a conversion has done so far, so that the same command resumes where it was stopped.

A text file of JSON lines in the workspace: first the fingerprint of source and options, then one line per tensor written.
Nothing is flushed to disk along the way: after a power loss the journal may list tensors whose bytes were lost, so a resumed
conversion reads the bytes of every line back and trusts only their checksums. Each line ends with its own checksum: a
truncated or changed line does not count, nor does any after it.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any, Final

from ..formats.regular_file import open_to_write, read_at_most, write_all
from ..formats.safetensors.checksum import checksum

JOURNAL_FILE = "journal.jsonl"
_MOST_BYTES: Final = 1 << 30
"""Three times what a million tensors take; anything longer is not a journal."""


class Journal:
    """The journal of a workspace; each line goes to the operating system at once."""

    def __init__(self, workspace: Path, fingerprint: str) -> None:
        self._seed = fingerprint
        self._lock = threading.Lock()
        self.entries: dict[str, Any] = {}
        """What was recorded, by key; the last line for a key counts."""
        self._fd = open_to_write(workspace / JOURNAL_FILE)
        try:
            data = b"" if os.fstat(self._fd).st_size > _MOST_BYTES else self._read()
            first, *lines = data.split(b"\n")[:-1] or [b""]
            self.resumed = _parsed(first) == {"fingerprint": fingerprint}
            """Whether the workspace belongs to the same source and options; if not, its contents are useless."""
            self.outdated = bool(data) and not self.resumed
            """Whether it belongs to another source or other options."""
            kept = len(first) + 1 + self._take(lines) if self.resumed else 0
            os.ftruncate(self._fd, kept)
            os.lseek(self._fd, kept, os.SEEK_SET)
            if not self.resumed:
                write_all(self._fd, json.dumps({"fingerprint": fingerprint}).encode() + b"\n")
        except BaseException:
            self.close()
            raise

    def record(self, key: str, value: object) -> None:
        """Add a line; after a kill it is either complete or truncated at the end of the file."""
        body = json.dumps({"key": key, "value": value})
        line = json.dumps({"key": key, "value": value, "sum": self._sum(body)})
        with self._lock:
            self.entries[key] = value
            write_all(self._fd, line.encode() + b"\n")

    def close(self) -> None:
        os.close(self._fd)

    def _read(self) -> bytes:
        return read_at_most(self._fd, _MOST_BYTES)

    def _sum(self, body: str) -> str:
        return checksum(f"{self._seed} {body}".encode())

    def _take(self, lines: list[bytes]) -> int:
        """Take the lines up to the first damaged one; returns the number of bytes taken."""
        taken = 0
        for line in lines:
            value = _parsed(line)
            if not isinstance(value, dict) or set(value) != {"key", "value", "sum"}:
                break
            recorded = value.pop("sum")
            if recorded != self._sum(json.dumps(value)) or not isinstance(value["key"], str):
                break
            self.entries[value["key"]] = value["value"]
            taken += len(line) + 1
        return taken


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
