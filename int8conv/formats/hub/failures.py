"""Failures of the hub: which are transient, how long to wait, and what the others mean to the user."""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from ...errors import (
    HubAccessError,
    HubNotFoundError,
    HubUnavailableError,
    Int8convError,
    NoSpaceError,
    NotFoundError,
    NotWritableError,
)

_Result = TypeVar("_Result")

WAITS: Final = (1, 2, 4, 8)
"""Seconds before each further attempt, unless the hub asks for a longer wait."""
_LONGEST_WAIT: Final = 300
"""The hub counts requests over windows of five minutes."""
_PASSING_STATUS: Final = {408, 429, 500, 502, 503, 504}
_PASSING_FAULTS: Final = {"TimeoutException", "NetworkError", "RemoteProtocolError", "ConnectionError"}  # fmt: skip
"""Names of exception classes or their bases: those of httpx (httpx2 in version 2 of the library) and Python."""
_UNREACHABLE: Final = {"ConnectError", "ConnectTimeout", "ConnectionRefusedError", "ProxyError"}


class Patience:
    """Waits before retrying a request, a limited number of times.

    Args:
        reconnect: whether an unreachable hub counts as a transient failure: not before the first contact, when the network
            is more likely to be down.
    """

    def __init__(self, *, reconnect: bool) -> None:
        self._reconnect = reconnect
        self._waits = iter(WAITS)

    def after(self, error: Exception) -> None:
        """Wait before a retry; raise the error if it is not transient or there were enough attempts."""
        cause = cause_of(error)
        wait = next(self._waits, None) if self._passes(cause) else None
        if wait is None:
            raise error
        time.sleep(max(wait, min(_asked_wait(cause), _LONGEST_WAIT)))

    def renew(self) -> None:
        """Progress was made: the next failure counts as the first."""
        self._waits = iter(WAITS)

    def _passes(self, error: BaseException) -> bool:
        from huggingface_hub.errors import OfflineModeIsEnabled

        if isinstance(
            error, OfflineModeIsEnabled | Int8convError
        ):  # some derive from ConnectionError
            return False
        names = {kind.__name__ for kind in type(error).__mro__}
        if names & _UNREACHABLE:
            return self._reconnect
        return _status(error) in _PASSING_STATUS or bool(names & _PASSING_FAULTS)


def patiently(request: Callable[[], _Result]) -> _Result:
    """The result of a request, retried after transient failures."""
    patience = Patience(reconnect=False)
    while True:
        try:
            return request()
        except Exception as error:
            patience.after(error)


@contextmanager
def quiet_library() -> Iterator[None]:
    """Suppress the library's warnings (of retries, for instance), as an error is one line. Not thread-safe."""
    from huggingface_hub.utils import logging as library

    before = library.get_verbosity()
    if not os.environ.get("HF_HUB_VERBOSITY"):
        library.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        library.set_verbosity(before)


@contextmanager
def hub_errors(source: str, *, write: bool = False) -> Iterator[None]:
    """Turn the library's errors into this package's; ``write``: of requests that change a repository."""
    try:
        yield
    except Int8convError:
        raise
    except Exception as error:  # library, HTTP client and storage have no common base class
        cause = cause_of(error)
        raise (write and _refused(cause, source)) or _translated(cause, source) from error


def cause_of(error: Exception) -> BaseException:
    """The cause of "not in the cache, and could not be downloaded", and of "error while uploading"."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    wraps = isinstance(error, LocalEntryNotFoundError) or type(error) is RuntimeError
    return (wraps and error.__cause__) or error


def _status(error: BaseException) -> int | None:
    """HTTP status of the response that caused an error."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _asked_wait(error: BaseException) -> int:
    """Seconds that the hub asked to wait, or 0."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    seconds = str(headers.get("Retry-After", "")).strip()
    reset = re.search(r"\br=0;t=(\d+)", str(headers.get("RateLimit", "")).replace(" ", ""))
    return int(seconds) if seconds.isdecimal() else int(reset[1]) if reset else 0


def _refused(error: BaseException, source: str) -> HubAccessError | None:
    """The error for a change that the hub does not allow; it says that a repository is not there to those who may not see it."""
    if _status(error) not in (401, 403, 404):
        return None
    return HubAccessError(
        "the hub does not allow writing to this repository", file=source, found=f"HTTP {_status(error)}",
        hint="check the name, and set HF_TOKEN to a token with write access",
    )  # fmt: skip


def _translated(error: BaseException, source: str) -> Int8convError:
    from huggingface_hub import errors as hub

    status = _status(error)
    found = f"HTTP {status}"
    if isinstance(error, hub.OfflineModeIsEnabled | hub.LocalEntryNotFoundError):
        return HubUnavailableError(
            "incomplete in the hub cache, and HF_HUB_OFFLINE is set", file=source
        )
    if isinstance(error, hub.HFValidationError):
        return NotFoundError("no such folder, and not a hub id", file=source)
    if isinstance(error, hub.GatedRepoError):
        return HubAccessError(
            "access to this repository is gated", file=source,
            hint="accept the licence on its page, then set HF_TOKEN to a token of that account",
        )  # fmt: skip
    if status in (401, 403):
        return HubAccessError(
            "the hub denies access to this repository", file=source, found=found,
            hint="check the name, and set HF_TOKEN to a token with read access",
        )  # fmt: skip
    if isinstance(error, hub.RevisionNotFoundError):
        return HubNotFoundError("no such revision in this repository on the hub", file=source)
    if isinstance(error, hub.RepositoryNotFoundError):
        return HubNotFoundError("no such folder, and no such repository on the hub", file=source)
    if status == 404:
        return HubNotFoundError("a file is not on the hub", file=source)
    if status == 429:
        return HubUnavailableError(
            "too many requests to the hub", file=source, found=found,
            hint="try again later; a token in HF_TOKEN may raise the limit",
        )  # fmt: skip
    if status is not None:
        return HubUnavailableError(
            "the hub returned an error", file=source, found=found, hint="try again later"
        )
    if isinstance(error, OSError) and error.errno and error.filename:  # on the cache's disk
        kind = NoSpaceError if error.errno == errno.ENOSPC else NotWritableError
        return kind(f"cannot download to the hub's cache: {error.strerror}", file=error.filename)
    return HubUnavailableError(
        "cannot be read from the hub", file=source,
        found=str(error).strip().partition("\n")[0] or type(error).__name__,
        hint="check the path, the network, and HF_ENDPOINT if it is set",
    )  # fmt: skip
