"""The other end of ``template_process``: one such process, started at the first template and again if one had to be ended.

Starting it takes a tenth of a second; then a template is rendered in some milliseconds, as in this process.
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
"""However busy the machine is."""
_MOST_BYTES: Final = 12 * MOST_TEXT + 100
"""Of a reply: each character becomes an escape or two."""
_START: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.stdin.buffer.readline()); "
    "from int8conv.runtime.text.template_process import main; main()"
)

_PACKAGES: Final = str(Path(__file__).parents[3])
"""Where this package was found; of the rest of the search path the working folder is left out, which may be anybody's."""


class RenderingError(Exception):
    """A template fails; its text says how.

    Args:
        line: of the template, where that is known.
    """

    def __init__(self, text: str, line: int | None = None) -> None:
        super().__init__(text)
        self.line = line


class Renderer:
    """A process for templates."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def render(self, source: str, variables: Mapping[str, Any] | None = None) -> str:
        """The text of a template; without variables it is only compiled.

        Raises:
            RenderingError: it fails, or takes too much time or memory.
            TypeError, ValueError: the variables are not JSON.
        """
        request = {"source": source} | ({} if variables is None else {"variables": variables})
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            try:
                answer = self._ask(line)
            except BaseException:  # a reply that nobody has read would be the next one's
                self._end()
                raise
        if "error" in answer:
            raise RenderingError(str(answer["error"]), answer.get("line"))
        return str(answer["text"])

    def close(self) -> None:
        """End the process; the next template starts another."""
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
        if self._owner != os.getpid():  # forked: it is the parent's
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
    """Up to the line's end, that of the stream, or the deadline."""
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
    """Why a process has not answered."""
    try:
        code = process.wait(timeout=1)
    except subprocess.TimeoutExpired:
        return f"it takes more than {WALL_SECONDS:.0f} s"
    if code == -signal.SIGXCPU:
        return f"it takes more than {CPU_SECONDS} s of processor time"
    return (
        "the process that rendered it came to an end: it needs too much memory, or nests too deeply"
    )


RENDERER: Final = Renderer()
"""Of this process."""
atexit.register(RENDERER.close)
