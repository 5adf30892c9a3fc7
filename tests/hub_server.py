"""A model hub on this machine's loopback: the requests that the hub's library makes, and faults on demand.

Two ports, as on the real hub: one knows repositories and tokens, the other serves the bytes of large files.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import pytest

ID = "some-org/small.model-1"
_PIECE_BYTES = 1 << 16


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    method: str
    path: str
    token: str | None
    range: str | None
    agent: str


Failure = int | Literal["drop", "whole", "shorter", "other headers"]


@dataclass
class Fault:
    """What becomes of the next requests whose method and path match.

    A status; or ``"drop"``: the connection ends in the middle of the body; ``"whole"``: ranges are ignored;
    ``"shorter"``: the file lacks its last byte; ``"other headers"``: nothing but those.
    """

    what: Failure
    on: str
    """A regular expression for ``"GET /path"``."""
    times: int = 1_000_000
    headers: dict[str, str] = field(default_factory=dict)
    """Added to the answer's, or in their place."""


class HubServer:
    """Serves folders as the revisions of one repository.

    Args:
        revisions: branch or tag to the folder with its files; the commit is made from the name.
        token: if given, a request without it is refused.
    """

    def __init__(self, revisions: dict[str, Path], *, token: str | None = None) -> None:
        handler: type[_Handler] = self.handler()
        self.revisions = revisions
        self.token = token
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.sent = 0
        """Bytes of bodies."""
        self._lock = threading.Lock()
        self._ports = [
            ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, self)) for _ in range(2)
        ]
        self.url, self.cdn_url = (f"http://127.0.0.1:{p.server_port}" for p in self._ports)

    @staticmethod
    def handler() -> type[_Handler]:
        """What answers requests."""
        return _Handler

    @contextmanager
    def running(self) -> Iterator[HubServer]:
        """Answers within the block."""
        for port in self._ports:
            port.daemon_threads = True
            serve = partial(port.serve_forever, poll_interval=0.01)
            threading.Thread(target=serve, daemon=True).start()
        try:
            yield self
        finally:
            for port in self._ports:
                port.shutdown()
                port.server_close()

    def commit(self, revision: str = "main") -> str:
        """The full name of a branch's or tag's commit."""
        return hashlib.sha1(revision.encode()).hexdigest()

    def folder(self, revision: str) -> Path | None:
        """The files of a branch, tag or commit."""
        for name, folder in self.revisions.items():
            if revision in (name, self.commit(name)):
                return folder
        return None

    def fail(self, what: Failure, on: str, **options: Any) -> None:
        """Add a fault."""
        self.faults.append(Fault(what, on, **options))

    def got(self, method: str = "GET") -> set[str]:
        """Names of the files that requests of that method were about."""
        pattern = re.compile(r"/cdn/[0-9a-f]+/(.+)|/.*/resolve/[^/]+/(.+)")
        matches = [pattern.fullmatch(r.path) for r in self.requests if r.method == method]
        return {match[1] or match[2] for match in matches if match}

    def ranges(self) -> list[tuple[int, int]]:
        """First and last byte of each range that the port of large files was asked for."""
        found = [r.range for r in self.requests if r.path.startswith("/cdn/") and r.range]
        pairs = [text.removeprefix("bytes=").split("-") for text in found]
        return [(int(first), int(last)) for first, last in pairs]

    def note(self, request: Request) -> Fault | None:
        """Log a request; the fault that it shall meet."""
        with self._lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.times and re.search(fault.on, f"{request.method} {request.path}"):
                    fault.times -= 1
                    return fault
        return None


def use_hub(patch: pytest.MonkeyPatch, url: str, home: Path) -> None:
    """Point the hub's library, in this process, at a server and a cache of its own, without a token."""
    from huggingface_hub import constants

    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        patch.delenv(variable, raising=False)
    patch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)


def is_large(path: Path) -> bool:
    """Whether the file's bytes are served from the second port."""
    return path.suffix in (".safetensors", ".bin")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: HubServer, *args: Any) -> None:
        self.hub = hub
        self.fault: Fault | None = None
        super().__init__(*args)

    def log_message(self, *args: Any) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, TimeoutError):  # the client has left in the middle of a body
            self.close_connection = True

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        bearer = self.headers.get("Authorization")
        token = bearer.removeprefix("Bearer ") if bearer else None
        agent = self.headers.get("User-Agent", "")
        fault = self.hub.note(Request(self.command, path, token, self.headers.get("Range"), agent))
        self.fault = fault
        if fault is not None and isinstance(fault.what, int):
            self._answer(fault.what, {})
        elif match := re.fullmatch(r"/cdn/([0-9a-f]{40})/(.+)", path):
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
        if not (file.is_file() and is_large(file)):
            self._send_file(folder, name, headers)
            return
        data, _, sha256 = _contents(file)
        location = f"{self.hub.cdn_url}/cdn/{commit}/{name}"
        linked = {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{sha256}"'}
        self._answer(302, headers | linked | {"Location": location})

    def _send_file(self, folder: Path | None, name: str, headers: dict[str, str]) -> None:
        if folder is None or not (folder / name).is_file():
            self._answer(404, headers | {"X-Error-Code": "EntryNotFound"})
            return
        data, git_id, _ = _contents(folder / name)
        what = self.fault.what if self.fault else None
        if what == "shorter":
            data = data[:-1]
        headers = headers | {"ETag": f'"{git_id}"', "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None or what == "whole":
            self._answer(200, headers, data)
            return
        first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self._answer(206, headers, data[first : last + 1])

    def _send_json(self, value: object) -> None:
        self._answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        added = self.fault.headers if self.fault else {}
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers | added).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault and self.fault.what == "drop":
            body = body[: len(body) // 2]
            self.close_connection = True
        for begin in range(0, len(body), _PIECE_BYTES):
            piece = body[begin : begin + _PIECE_BYTES]
            self.wfile.write(piece)
            self.hub.sent += len(piece)


def _contents(path: Path) -> tuple[bytes, str, str]:
    """Bytes, git's id and SHA-256 of a file."""
    return _contents_then(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=32)
def _contents_then(path: Path, _mtime: int) -> tuple[bytes, str, str]:
    data = path.read_bytes()
    git_id = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return data, git_id, hashlib.sha256(data).hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _info(commit: str, folder: Path) -> dict[str, object]:
    siblings = [{"rfilename": path.relative_to(folder).as_posix()} for path in _files(folder)]
    return {"id": ID, "modelId": ID, "sha": commit, "siblings": siblings}


def _tree(folder: Path) -> list[dict[str, object]]:
    entries = []
    for path in _files(folder):
        data, git_id, sha256 = _contents(path)
        entry: dict[str, object] = {
            "type": "file", "path": path.relative_to(folder).as_posix(), "size": len(data),
            "oid": git_id,
        }  # fmt: skip
        if is_large(path):
            entry["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 130}
        entries.append(entry)
    return entries
