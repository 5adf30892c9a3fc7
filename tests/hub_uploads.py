"""The hub of ``hub_server`` with what an upload needs: creating a repository, large files, commits."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from . import hub_server
from .hub_server import ID, HubServer, Request, use_hub


class UploadHub(HubServer):
    """A hub on which nothing is, until somebody creates ``ID`` and commits to it.

    Args:
        folder: where committed files are written.
        token: what a request needs to change anything.
    """

    def __init__(self, folder: Path, *, write_token: str = "writer") -> None:
        super().__init__({})
        self.main = folder
        self.write_token = write_token
        self.private: bool | None = None
        self.stored: dict[str, bytes] = {}
        """Large files by their SHA-256."""
        self.received: list[str] = []
        """SHA-256 of each body that came."""
        self.commits: list[dict[str, object]] = []

    @staticmethod
    def handler() -> type[hub_server._Handler]:
        return _Handler

    def create(self, private: bool) -> bool:
        """Whether it was not there before."""
        if self.revisions:
            return False
        self.main.mkdir(parents=True, exist_ok=True)
        (self.main / ".gitattributes").write_text("*.safetensors filter=lfs\n")
        self.revisions["main"] = self.main
        self.private = private
        return True

    def commit_lines(self, lines: list[dict[str, object]]) -> None:
        for line in lines:
            value = line["value"]
            assert isinstance(value, dict)
            if line["key"] == "header":
                self.commits.append(value)
            elif line["key"] == "file":
                (self.main / value["path"]).write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                (self.main / value["path"]).write_bytes(self.stored[value["oid"]])
            else:
                assert line["key"] == "deletedFile"
                (self.main / value["path"]).unlink()


class _Handler(hub_server._Handler):
    hub: UploadHub

    def do_PUT(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        body = self._body()
        path = unquote(urlsplit(self.path).path)
        bearer = self.headers.get("Authorization")
        token = bearer.removeprefix("Bearer ") if bearer else None
        agent = self.headers.get("User-Agent", "")
        self.fault = self.hub.note(Request(self.command, path, token, None, agent))
        if self.fault is not None and isinstance(self.fault.what, int):
            self._answer(self.fault.what, {})
        elif match := re.fullmatch(r"/store/([0-9a-f]{64})", path):  # its address is the permission
            assert hashlib.sha256(body).hexdigest() == match[1]
            self.hub.stored[match[1]] = body
            self.hub.received.append(match[1])
            self._answer(200, {})
        elif path == "/api/validate-yaml":
            self._send_json({"errors": [], "warnings": []})
        elif token != self.hub.write_token:
            self._answer(401 if token is None else 403, {})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            assert f"{asked['organization']}/{asked['name']}" == ID
            private = bool(asked.get("private") or asked.get("visibility") == "private")
            new = self.hub.create(private)
            self._answer(200 if new else 409, {}, json.dumps({"url": f"{self.hub.url}/{ID}"}).encode())  # fmt: skip
        else:
            self._change(path, body)

    def _change(self, path: str, body: bytes) -> None:
        if path == f"/api/models/{ID}/preupload/main":
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]  # fmt: skip
            self._send_json({"files": modes})
        elif path == f"/{ID}.git/info/lfs/objects/batch":
            objects = []
            for asked in json.loads(body)["objects"]:
                upload = {"upload": {"href": f"{self.hub.url}/store/{asked['oid']}"}}
                objects.append(asked | ({} if asked["oid"] in self.hub.stored else {"actions": upload}))  # fmt: skip
            self._send_json({"transfer": "basic", "objects": objects})
        elif path == f"/api/models/{ID}/commit/main":
            self.hub.commit_lines([json.loads(line) for line in body.splitlines()])
            self._send_json({"commitUrl": f"{self.hub.url}/{ID}/commit/abc", "commitOid": "abc"})
        else:
            self._answer(404, {})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)


@contextmanager
def an_upload_hub(patch: pytest.MonkeyPatch, folder: Path) -> Iterator[UploadHub]:
    """A hub in use by this process, which has a token that may write and does not wait between attempts."""
    hub = UploadHub(folder / "repository")
    use_hub(patch, hub.url, folder / "home")
    patch.setenv("HF_TOKEN", "writer")
    patch.setattr("time.sleep", lambda seconds: None)
    with hub.running():
        yield hub
