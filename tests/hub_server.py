"""A model hub on this machine's loopback: the requests that the hub's library makes, and faults on demand.

Two ports, as on the real hub: one knows repositories and tokens, the other serves the bytes of large files.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

ID = "some-org/small.model-1"


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    method: str
    path: str
    token: str | None
    range: str | None
    agent: str


@dataclass
class Fault:
    """What becomes of the next requests whose method and path match."""

    status: int | None
    """None: the connection ends in the middle of the body."""
    on: str
    """A regular expression for ``"GET /path"``."""
    times: int = 1_000_000
    headers: dict[str, str] = field(default_factory=dict)


class HubServer:
    """Serves folders as the revisions of one repository.

    Args:
        revisions: branch or tag to the folder with its files; the commit is made from the name.
        token: if given, a request without it is refused.
    """

    def __init__(self, revisions: dict[str, Path], *, token: str | None = None) -> None:
        self.revisions = revisions
        self.token = token
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self._lock = threading.Lock()
        self._ports = [
            ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self)) for _ in range(2)
        ]
        self.url, self.cdn_url = (f"http://127.0.0.1:{p.server_port}" for p in self._ports)

    def __enter__(self) -> HubServer:
        for port in self._ports:
            serve = partial(port.serve_forever, poll_interval=0.01)
            threading.Thread(target=serve, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for port in self._ports:
            port.shutdown()
            port.server_close()

    def commit(self, revision: str) -> str:
        """The full name of a branch's or tag's commit."""
        return hashlib.sha1(revision.encode()).hexdigest()

    def folder(self, revision: str) -> Path | None:
        """The files of a branch, tag or commit."""
        for name, folder in self.revisions.items():
            if revision in (name, self.commit(name)):
                return folder
        return None

    def got(self, method: str = "GET") -> list[str]:
        """Names of the files that requests of that method were about, each as often as it was asked for."""
        pattern = re.compile(r"/cdn/[0-9a-f]+/(.+)|/.*/resolve/[^/]+/(.+)")
        matches = [pattern.fullmatch(r.path) for r in self.requests if r.method == method]
        return sorted(match[1] or match[2] for match in matches if match)

    def note(self, request: Request) -> Fault | None:
        """Log a request; the fault that it shall meet."""
        with self._lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.times and re.search(fault.on, f"{request.method} {request.path}"):
                    fault.times -= 1
                    return fault
        return None


def is_large(path: Path) -> bool:
    """Whether the file's bytes are served from the second port."""
    return path.suffix in (".safetensors", ".bin")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: HubServer, *args: Any) -> None:
        self.hub = hub
        super().__init__(*args)

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        bearer = self.headers.get("Authorization")
        token = bearer.removeprefix("Bearer ") if bearer else None
        agent = self.headers.get("User-Agent", "")
        fault = self.hub.note(Request(self.command, path, token, self.headers.get("Range"), agent))
        if fault is not None and fault.status is not None:
            self._answer(fault.status, fault.headers)
            return
        self.drops = fault is not None
        if match := re.fullmatch(r"/cdn/([0-9a-f]{40})/(.+)", path):
            self._send_file(self.hub.folder(match[1]), match[2], {})
        elif self.hub.token not in (None, token):
            message = "Invalid username or password."
            self._answer(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": message})
        elif match := re.fullmatch(rf"/api/models/{ID}/revision/(.+)", path):
            self._at(match[1], lambda commit, folder: self._send_json(_info(commit, folder)))
        elif match := re.fullmatch(rf"/api/models/{ID}/tree/([^/]+)", path):
            self._at(match[1], lambda commit, folder: self._send_json(_tree(folder)))
        elif match := re.fullmatch(rf"/{ID}/resolve/([^/]+)/(.+)", path):
            name = match[2]
            self._at(match[1], lambda commit, folder: self._resolve(commit, folder, name))
        else:
            self._answer(404, {"X-Error-Code": "RepoNotFound"})

    def _at(self, revision: str, then: Callable[[str, Path], None]) -> None:
        folder = self.hub.folder(revision)
        if folder is None:
            self._answer(404, {"X-Error-Code": "RevisionNotFound"})
            return
        (name,) = (name for name, other in self.hub.revisions.items() if other == folder)
        then(self.hub.commit(name), folder)

    def _resolve(self, commit: str, folder: Path, name: str) -> None:
        headers = {"X-Repo-Commit": commit}
        file = folder / name
        if file.is_file() and is_large(file):
            data = file.read_bytes()
            self._answer(
                302,
                headers
                | {
                    "Location": f"{self.hub.cdn_url}/cdn/{commit}/{name}",
                    "X-Linked-Size": str(len(data)),
                    "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"',
                },
            )
            return
        self._send_file(folder, name, headers)

    def _send_file(self, folder: Path | None, name: str, headers: dict[str, str]) -> None:
        if folder is None or not (folder / name).is_file():
            self._answer(404, headers | {"X-Error-Code": "EntryNotFound"})
            return
        data = (folder / name).read_bytes()
        headers = headers | {"ETag": f'"{_git_id(data)}"', "Accept-Ranges": "bytes"}
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if start is None:
            self._answer(200, headers, data)
            return
        first = int(start[1])
        headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        self._answer(206, headers, data[first:])

    def _send_json(self, value: object) -> None:
        self._answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if getattr(self, "drops", False):
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)


def _git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _info(commit: str, folder: Path) -> dict[str, object]:
    siblings = [{"rfilename": path.relative_to(folder).as_posix()} for path in _files(folder)]
    return {"id": ID, "modelId": ID, "sha": commit, "siblings": siblings}


def _tree(folder: Path) -> list[dict[str, object]]:
    entries = []
    for path in _files(folder):
        data = path.read_bytes()
        entry: dict[str, object] = {
            "type": "file", "path": path.relative_to(folder).as_posix(), "size": len(data),
            "oid": _git_id(data),
        }  # fmt: skip
        if is_large(path):
            sha256 = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 130}
        entries.append(entry)
    return entries
