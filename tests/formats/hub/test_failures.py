"""Which failures of a hub pass, how long to wait for them, and what the others are called; without a hub."""

from __future__ import annotations

import errno
import logging
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import errors as hub
from huggingface_hub.utils import logging as library

from int8conv.errors import (
    ArgumentError,
    HubAccessError,
    HubNotFoundError,
    HubUnavailableError,
    Int8convError,
    NoSpaceError,
    NotFoundError,
    NotWritableError,
)
from int8conv.formats.hub.failures import (
    WAITS,
    Patience,
    cause_of,
    hub_errors,
    patiently,
    quiet_library,
)

from ..damage import rejected

try:  # the client of the library's releases from 2.4 on, and of those before
    import httpx2 as httpx
except ModuleNotFoundError:
    import httpx  # type: ignore[import-not-found, no-redef]

REQUEST = httpx.Request("GET", "https://hub.invalid/api/models/x")


def answer(
    status: int, kind: type[hub.HfHubHTTPError] = hub.HfHubHTTPError, **headers: str
) -> hub.HfHubHTTPError:
    """The library's error for an answer of that status."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return kind("no", response=httpx.Response(status, headers=named, request=REQUEST))


def not_cached(cause: Exception) -> hub.LocalEntryNotFoundError:
    """What the library raises where it could not download what is not in its cache."""
    error = hub.LocalEntryNotFoundError("not in the cache")
    error.__cause__ = cause
    return error


PASSING: list[Exception] = [
    *(answer(status) for status in (408, 429, 500, 502, 503, 504)),
    httpx.ReadTimeout("slow"), httpx.ReadError("reset"), httpx.RemoteProtocolError("cut off"),
    ConnectionResetError("reset"),
]  # fmt: skip
UNREACHABLE: list[Exception] = [
    httpx.ConnectError("refused"), httpx.ConnectTimeout("slow"), httpx.ProxyError("none"),
    ConnectionRefusedError("refused"),
]  # fmt: skip
LASTING: list[Exception] = [
    *(answer(status) for status in (400, 401, 403, 404, 416, 501)),
    ValueError("wrong"), OSError(errno.ENOSPC, "full", "cache"),
    hub.OfflineModeIsEnabled("offline"),  # a ConnectionError, and yet it will not pass
]  # fmt: skip


def name_of(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", "")
    return f"{type(error).__name__}{status}"


@pytest.mark.parametrize("error", [*PASSING, *map(not_cached, PASSING)], ids=name_of)
@pytest.mark.parametrize("reconnect", [True, False])
def test_failures_that_pass_are_waited_for_and_then_raised(
    error: Exception, reconnect: bool, waits: list[float]
) -> None:
    patience = Patience(reconnect=reconnect)
    for _ in WAITS:
        patience.after(error)
    assert waits == [1, 2, 4, 8]
    with pytest.raises(type(error)) as caught:
        patience.after(error)
    assert caught.value is error
    assert len(waits) == 4


@pytest.mark.parametrize("error", UNREACHABLE, ids=name_of)
def test_a_hub_out_of_reach_is_waited_for_after_the_first_contact_only(
    error: Exception, waits: list[float]
) -> None:
    with pytest.raises(type(error)):
        Patience(reconnect=False).after(error)
    assert waits == []
    Patience(reconnect=True).after(error)
    assert waits == [1]


@pytest.mark.parametrize("error", LASTING, ids=name_of)
@pytest.mark.parametrize("reconnect", [True, False])
def test_failures_that_last_are_raised_at_once(
    error: Exception, reconnect: bool, waits: list[float]
) -> None:
    with pytest.raises(type(error)) as caught:
        Patience(reconnect=reconnect).after(error)
    assert caught.value is error
    assert waits == []


def test_patience_begins_again_where_it_went_on(waits: list[float]) -> None:
    patience, error = Patience(reconnect=True), answer(503)
    for _ in range(3):
        patience.after(error)
    patience.renew()
    for _ in WAITS:
        patience.after(error)
    assert waits == [1, 2, 4, 1, 2, 4, 8]
    with pytest.raises(hub.HfHubHTTPError):
        patience.after(error)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Retry_After": "17"}, 17),
        ({"Retry_After": " 17 "}, 17),
        ({"Retry_After": "0"}, 1),
        ({"Retry_After": "100000"}, 300),
        ({"Retry_After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 1),
        ({"Retry_After": "-5"}, 1),
        ({"RateLimit": '"api";r=0;t=33'}, 33),
        ({"RateLimit": '"api"; r=0; t=33'}, 33),
        ({"RateLimit": '"api";r=10;t=33'}, 1),
        ({"RateLimit": '"api";r=0;t=33', "Retry_After": "5"}, 5),
    ],
)
def test_the_wait_that_the_hub_asks_for(
    headers: dict[str, str], expected: int, waits: list[float]
) -> None:
    """Seconds, or the rest of a used-up rate limit; never less than the own wait, nor above five minutes."""
    Patience(reconnect=False).after(answer(429, **headers))
    assert waits == [expected]


def test_a_request_is_repeated_until_it_succeeds(waits: list[float]) -> None:
    outcomes: list[Any] = [answer(500), httpx.ReadError("reset"), "done", "never"]

    def request() -> str:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return str(outcome)

    assert patiently(request) == "done"
    assert waits == [1, 2]
    assert outcomes == ["never"]


def test_the_cause_behind_what_is_not_in_the_cache() -> None:
    cause = answer(404)
    assert cause_of(not_cached(cause)) is cause
    assert cause_of(cause) is cause
    alone = hub.LocalEntryNotFoundError("not in the cache")
    assert cause_of(alone) is alone


@pytest.mark.parametrize(
    ("error", "becomes", "says"),
    [
        (hub.OfflineModeIsEnabled("x"), HubUnavailableError, "HF_HUB_OFFLINE"),
        (hub.LocalEntryNotFoundError("x"), HubUnavailableError, "HF_HUB_OFFLINE"),
        (hub.HFValidationError("x"), NotFoundError, "not a hub id"),
        (answer(403, hub.GatedRepoError), HubAccessError, "gated"),
        (answer(401), HubAccessError, "HTTP 401"),
        (answer(403), HubAccessError, "HTTP 403"),
        (answer(404, hub.RevisionNotFoundError), HubNotFoundError, "revision"),
        (answer(404, hub.RepositoryNotFoundError), HubNotFoundError, "repository"),
        (answer(401, hub.RepositoryNotFoundError), HubAccessError, "HF_TOKEN"),
        (answer(404), HubNotFoundError, "a file is not on the hub"),
        (answer(429), HubUnavailableError, "too many requests"),
        (answer(500), HubUnavailableError, "HTTP 500"),
        (answer(418), HubUnavailableError, "HTTP 418"),
        (httpx.ConnectError("no route\nto host"), HubUnavailableError, "no route"),
        (httpx.ConnectError(""), HubUnavailableError, "ConnectError"),
        (not_cached(answer(500)), HubUnavailableError, "HTTP 500"),
    ],
    ids=lambda value: name_of(value) if isinstance(value, Exception) else "",
)
def test_what_an_error_becomes(error: Exception, becomes: type[Int8convError], says: str) -> None:
    with rejected(becomes, "org/name", says), hub_errors("org/name"):
        raise error


@pytest.mark.parametrize(
    ("number", "becomes"), [(errno.ENOSPC, NoSpaceError), (errno.EACCES, NotWritableError)]
)
def test_errors_of_the_caches_disk_name_the_file(
    number: int, becomes: type[Int8convError], tmp_path: Path
) -> None:
    file = str(tmp_path / "blob")
    with rejected(becomes, file, "cache"), hub_errors("org/name"):
        raise OSError(number, "refused", file)


def test_errors_of_this_package_pass_as_they_are() -> None:
    error = ArgumentError("mine")
    with pytest.raises(ArgumentError) as caught, hub_errors("org/name"):
        raise error
    assert caught.value is error


def test_the_library_is_quiet_inside_and_as_before_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HF_HUB_VERBOSITY", raising=False)
    before = library.get_verbosity()
    try:
        library.set_verbosity(logging.INFO)
        with pytest.raises(ValueError, match="stop"), quiet_library():
            assert library.get_verbosity() == logging.CRITICAL
            raise ValueError("stop")
        assert library.get_verbosity() == logging.INFO
        monkeypatch.setenv("HF_HUB_VERBOSITY", "info")
        with quiet_library():
            assert library.get_verbosity() == logging.INFO
    finally:
        library.set_verbosity(before)
