"""Python in forks of one process that has imported PyTorch and this package: processes of their own without the seconds of importing.

``python()`` is the start of a command, in the place of an interpreter: followed by ``-m int8conv``, ``-c CODE`` or ``-`` with arguments,
it runs in a fork of a server, with the caller's files, folder and environment, and ends with the fork's exit code. What libraries
read from the environment when they are imported is what it was when the server started; signals to the command do not reach the fork.
This file is the server, and, without the packages of an installation, the command.
"""

from __future__ import annotations

import array
import atexit
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_LENGTH = struct.Struct("<I")


@cache
def python() -> tuple[str, ...]:
    """The command; starts the server, which ends with this process."""
    path = str(Path(tempfile.mkdtemp(prefix="int8conv-forks-"), "socket"))
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.forks", "serve", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert server.stdin is not None
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    atexit.register(server.wait)
    atexit.register(server.stdin.close)
    return sys.executable, "-ISu", __file__, "run", path


def _run(path: str, arguments: list[str]) -> int:
    """Have the server's fork run: the exit code."""
    message = {"arguments": arguments, "folder": str(Path.cwd()), "environment": dict(os.environ)}
    data = json.dumps(message).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        files = array.array("i", (0, 1, 2))
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)]
        connection.sendmsg([_LENGTH.pack(len(data))], ancillary)
        connection.sendall(data)
        return _LENGTH.unpack(_receive(connection, _LENGTH.size))[0]  # type: ignore[no-any-return]


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError("the server of forks is gone")
        data += part
    return data


def _serve(path: str) -> None:
    """Import, then fork for each connection until stdin ends."""
    import select
    import signal

    import numba  # noqa: F401

    import int8conv.cli

    assert int8conv.load
    assert int8conv.convert_checkpoint
    assert "huggingface_hub" not in sys.modules, "it reads the environment when it is imported"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _supervise(connection)
            os._exit(0)
        connection.close()


def _supervise(connection: socket.socket) -> None:
    """Run what the connection asks for in one more fork, and answer with its exit code."""
    head, files, _, _ = socket.recv_fds(connection, _LENGTH.size, 3)
    message = json.loads(_receive(connection, _LENGTH.unpack(head)[0]))
    child = os.fork()
    if child == 0:
        connection.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        os._exit(_execute(message))
    for file in files:
        os.close(file)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    connection.sendall(_LENGTH.pack(code if code >= 0 else 128 - code))


def _execute(message: dict[str, Any]) -> int:
    """As the interpreter would: the exit code."""
    import runpy
    import traceback

    os.chdir(message["folder"])
    os.environ.clear()
    os.environ.update(message["environment"])
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # fmt: skip
    kind, *arguments = message["arguments"]
    code = 0
    try:
        if kind == "-m":
            sys.argv = arguments
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        else:
            source = sys.stdin.read() if kind == "-" else arguments.pop(0)
            sys.argv = [kind, *arguments]
            exec(compile(source, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            sys.stderr.write(end.code + "\n")
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        _serve(sys.argv[2])
    else:
        sys.exit(_run(sys.argv[2], sys.argv[3:]))
