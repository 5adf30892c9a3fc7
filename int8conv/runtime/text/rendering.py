"""The counterpart of ``template_process``: one such process, started for the first template and restarted if it had to be killed.

Starting it takes a tenth of a second; after that, rendering a template takes a few milliseconds, as it would in this process.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final

from .template_process import CPU_SECONDS, MOST_TEXT

WALL_SECONDS: Final = 120.0
"""Limit on wall-clock time, however busy the machine is."""
_MOST_BYTES: Final = 12 * MOST_TEXT + 100
"""Largest size of a reply: each character may become one or two escapes."""
_START: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.stdin.buffer.readline()); "
    "from int8conv.runtime.text.template_process import main; main()"
)

_PACKAGES: Final = str(Path(__file__).parents[3])
"""Where this package was found; the working folder is not part of the search path, as it may be untrusted."""


class RenderingError(Exception):
    """A template failed; the text says how.

    Args:
        line: line of the template, if known.
    """

    def __init__(self, text: str, line: int | None = None) -> None:
        super().__init__(text)
        self.line = line


class Renderer:
    """A process that renders templates."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def render(self, source: str, variables: Mapping[str, Any] | None = None) -> str:
        """Render a template, or only compile it if there are no variables.

        Raises:
            RenderingError: it fails, or takes too much time or memory.
            TypeError, ValueError: the variables are not JSON.
        """
        request = {"source": source} | ({} if variables is None else {"variables": variables})
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            try:
                answer = self._ask(line)
            except BaseException:  # an unread reply would be taken for the next one
                self._end()
                raise
        if "error" in answer:
            raise RenderingError(str(answer["error"]), answer.get("line"))
        return str(answer["text"])

    def close(self) -> None:
        """End the process; the next template starts a new one."""
        with self._lock:
            self._end()

    def _ask(self, line: bytes) -> dict[str, Any]:
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        deadline = time.monotonic() + WALL_SECONDS
        try:
            process.stdin.write(line)
            process.stdin.flush()
            reply = _read_line(process.stdout, deadline)
        except BrokenPipeError:
            reply = b""
        if not reply.endswith(b"\n"):
            raise RenderingError(_why(process))
        answer: dict[str, Any] = json.loads(reply)
        return answer

    def _running(self) -> subprocess.Popen[bytes]:
        if self._owner != os.getpid():  # after a fork, it belongs to the parent
            self._process = None
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._owner = os.getpid()
            self._process = subprocess.Popen(  # noqa: S603  # this interpreter, and a constant
                [sys.executable, "-I", "-c", _START],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            assert self._process.stdin is not None
            path = [_PACKAGES, *(entry for entry in sys.path if Path(entry).is_absolute())]
            self._process.stdin.write(json.dumps(path).encode() + b"\n")
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            try:
                if stream is not None:
                    stream.close()
            except BrokenPipeError:
                pass


def _read_line(stream: IO[bytes], deadline: float) -> bytes:
    """Read up to the end of the line, the end of the stream, or the deadline."""
    parts: list[bytes] = []
    fd, size = stream.fileno(), 0
    while size <= _MOST_BYTES:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        part = os.read(fd, 1 << 16) if ready else b""
        parts.append(part)
        size += len(part)
        if not part or part.endswith(b"\n"):
            break
    return b"".join(parts)


def _why(process: subprocess.Popen[bytes]) -> str:
    """Why a process did not answer."""
    try:
        code = process.wait(timeout=1)
    except subprocess.TimeoutExpired:
        return f"it takes more than {WALL_SECONDS:.0f} s"
    if code == -signal.SIGXCPU:
        return f"it takes more than {CPU_SECONDS} s of processor time"
    return "the process that rendered it died: it needs too much memory or nests too deeply"


RENDERER: Final = Renderer()
"""The renderer of this process."""
atexit.register(RENDERER.close)
