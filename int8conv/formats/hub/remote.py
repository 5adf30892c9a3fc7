"""Weights files on the hub, read with HTTP range requests and never stored.

A reader requests everything its user is going to read (``until``) at once and passes the body on as it arrives: the
network's flow control bounds memory. A dropped connection is resumed where it stopped. Every response must be for the same
file, with the size that the hub lists and one ETag throughout.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from ... import __version__
from ...errors import HubChangedError, HubUnavailableError, TruncatedFileError
from .failures import Patience, hub_errors

_PROGRESS_BYTES: Final = 1 << 20
"""After this many bytes, the next failure counts as the first."""
_EXPIRED: Final = (401, 403, 404, 410)
"""How a storage server answers when a temporary URL has expired."""


@dataclass
class _Known:
    """What responses so far revealed about a file; threads may find the same out twice."""

    location: str | None = None
    """Where the hub redirected the last request."""
    etag: str | None = None


@dataclass(frozen=True)
class RemoteFile:
    """A weights file on the hub, at a commit."""

    repository: str
    commit: str
    name: str
    nbytes: int
    content: str
    """Identifies the content."""
    known: _Known = field(default_factory=_Known, compare=False, repr=False)

    @contextmanager
    def open(self, until: int = 0) -> Iterator[_RemoteReader]:
        reader = _RemoteReader(self, until)
        try:
            yield reader
        finally:
            reader.close()

    def size(self) -> int:
        return self.nbytes

    def stamp(self) -> object:
        return [self.nbytes, self.content]

    def __str__(self) -> str:
        return f"{self.repository}/{self.name}"


class _RemoteReader:
    """Reads one body at a time; threads that share it wait for each other and should read in order."""

    def __init__(self, file: RemoteFile, until: int) -> None:
        self._file = file
        self._until = until
        self._lock = threading.Lock()
        self._position = -1
        """Offset of the next byte of the body."""
        self._body = ExitStack()
        self._chunks: Iterator[bytes] = iter(())
        self._left = memoryview(b"")
        """The unread rest of the last chunk."""

    def read_into(self, data: memoryview, offset: int) -> None:
        end = offset + len(data)
        if end > self._file.nbytes:
            raise TruncatedFileError("the file is too short", file=self._file,
                                     expected=f"{end} bytes", found=self._file.nbytes)  # fmt: skip
        patience, progress = Patience(reconnect=True), 0
        with self._lock, hub_errors(str(self._file)):
            while data:
                try:
                    if offset != self._position:
                        self._request(offset, max(end, self._until))
                    count = self._take(data)
                except Exception as error:
                    self.close()
                    self._file.known.location = None  # the hub may give a better one
                    patience.after(error)
                    progress = 0
                else:
                    data, offset, progress = data[count:], offset + count, progress + count
                    if progress >= _PROGRESS_BYTES:
                        patience.renew()

    def close(self) -> None:
        """Drop the body, and the connection if any of it is unread."""
        self._position = -1
        self._left = memoryview(b"")
        self._body.close()

    def _take(self, data: memoryview) -> int:
        """Copy what is available of the body into ``data``; returns the number of bytes."""
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                raise ConnectionError("the connection ended in the middle of the body")
            self._left = memoryview(chunk)
        count = min(len(data), len(self._left))
        data[:count] = self._left[:count]
        self._left = self._left[count:]
        self._position += count
        return count

    def _request(self, begin: int, end: int) -> None:
        self.close()
        known = self._file.known
        response = self._send(known.location, begin, end) if known.location else None
        if response is None or response.status_code in _EXPIRED:
            self._body.close()
            response = self._send(None, begin, end)
            known.location = str(response.url) if response.history else None
        _check_answer(self._file, response, begin)
        self._position = begin

    def _send(self, location: str | None, begin: int, end: int) -> Any:
        """The response, before its body is read."""
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

        file = self._file
        url = hf_hub_url(file.repository, file.name, revision=file.commit)
        elsewhere = location is not None and urlsplit(location).netloc != urlsplit(url).netloc
        headers = build_hf_headers(
            token=False if elsewhere else None,
            library_name="int8conv", library_version=__version__,
        )  # fmt: skip
        headers |= {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
        response = self._body.enter_context(
            get_session().stream(
                "GET", location or url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
            )
        )
        self._chunks = response.iter_raw()  # not decompressed
        return response


def _check_answer(file: RemoteFile, response: Any, begin: int) -> None:
    """Refuse a response that is not the requested range of the known file."""
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    if response.status_code == 416:
        raise _changed(file, f"{file.nbytes} bytes", response.headers.get("Content-Range"))
    hf_raise_for_status(response)
    shown = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", shown)
    encoding = response.headers.get("Content-Encoding", "identity")
    if response.status_code != 206 or match is None or encoding != "identity":
        raise HubUnavailableError(
            "the server does not support range requests", file=file, expected="HTTP 206",
            found=f"HTTP {response.status_code}", hint="omit --stream to download it",
        )  # fmt: skip
    if (int(match[1]), int(match[2])) != (begin, file.nbytes):
        raise _changed(file, f"from byte {begin} of {file.nbytes}", shown)
    etag = response.headers.get("ETag")
    known = file.known.etag
    if known is not None and etag is not None and etag != known:
        raise _changed(file, known, etag)
    file.known.etag = etag or known


def _changed(file: RemoteFile, expected: str, found: str | None) -> HubChangedError:
    return HubChangedError("the file changed while it was being read", file=file, expected=expected,
                           found=found, hint="run the command again")  # fmt: skip
