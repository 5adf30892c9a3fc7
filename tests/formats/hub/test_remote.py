"""Weights read from the hub by ranges: the right bytes of one file, or an error; nothing stored, little in memory."""

from __future__ import annotations

import os
import struct
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from int8conv.errors import (
    ArgumentError,
    HeaderSyntaxError,
    HeaderTooLongError,
    HubAccessError,
    HubChangedError,
    HubNotFoundError,
    HubUnavailableError,
    TruncatedFileError,
)
from int8conv.formats.hub.download import resolve, resolve_headers
from int8conv.formats.hub.failures import WAITS
from int8conv.formats.safetensors.header import read_header
from int8conv.formats.safetensors.storage import WeightsFile
from int8conv.formats.source.checkpoint import open_checkpoint
from int8conv.formats.source.weight_files import SAFETENSORS

from ...checkpoints import write_checkpoint
from ...hub_server import ID, HubServer
from .test_download import write_pickles

CDN = "GET /cdn/"


@pytest.fixture
def file(hub: HubServer, source: Path) -> WeightsFile:
    """The weights of ``source`` on the hub, grown to 3 MiB of noise; the requests so far forgotten."""
    (source / SAFETENSORS.single).write_bytes(os.urandom(3 << 20))
    found = resolve(ID, stream=True).remote[SAFETENSORS.single]
    hub.requests.clear()
    return found


@pytest.fixture
def data(file: WeightsFile, source: Path) -> bytes:
    return (source / SAFETENSORS.single).read_bytes()


def read(file: WeightsFile, begin: int, end: int, *, until: int = 0) -> bytes:
    buffer = bytearray(end - begin)
    with file.open(until) as reader:
        reader.read_into(memoryview(buffer), begin)
    return bytes(buffer)


def read_blocks(file: WeightsFile, begin: int, end: int, block: int) -> bytes:
    """As the converter reads a tensor."""
    parts = []
    with file.open(end) as reader:
        for first in range(begin, end, block):
            buffer = bytearray(min(block, end - first))
            reader.read_into(memoryview(buffer), first)
            parts.append(bytes(buffer))
    return b"".join(parts)


def test_any_part(hub: HubServer, file: WeightsFile, data: bytes) -> None:
    for begin, end in ((0, 1), (5, 4096), (len(data) - 3, len(data)), (0, len(data)), (7, 7)):
        assert read(file, begin, end) == data[begin:end]
    assert hub.ranges() == [(0, 0), (5, 4095), (len(data) - 3, len(data) - 1), (0, len(data) - 1)]


def test_a_tensor_is_one_request(hub: HubServer, file: WeightsFile, data: bytes) -> None:
    assert read_blocks(file, 1000, 2_500_001, 1 << 18) == data[1000:2_500_001]
    assert hub.ranges() == [(1000, 2_500_000)]


def test_reading_out_of_order(file: WeightsFile, data: bytes) -> None:
    with file.open(len(data)) as reader:
        for begin in (0, 4096, 100, 2_000_000, 1 << 20):
            buffer = bytearray(4096)
            reader.read_into(memoryview(buffer), begin)
            assert buffer == data[begin : begin + 4096]


def test_threads_that_share_a_reader(file: WeightsFile, data: bytes) -> None:
    wrong = []

    def check(reader: Any, begin: int) -> None:
        for first in range(begin, begin + 50_000, 10_000):
            buffer = bytearray(10_000)
            reader.read_into(memoryview(buffer), first)
            if buffer != data[first : first + 10_000]:
                wrong.append(first)

    with file.open(len(data)) as reader:
        threads = [threading.Thread(target=check, args=(reader, n * 300_000)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_the_address_of_the_storage_is_asked_for_once(hub: HubServer, file: WeightsFile) -> None:
    for begin in range(4):
        read(file, begin, begin + 10)
    assert sum("/resolve/" in r.path for r in hub.requests) == 1
    assert len(hub.ranges()) == 4


@pytest.mark.parametrize("status", [403, 404, 410])
def test_an_address_that_expired_is_asked_for_again(
    hub: HubServer, file: WeightsFile, data: bytes, status: int
) -> None:
    read(file, 0, 10)
    hub.fail(status, CDN, times=1)
    assert read(file, 10, 20) == data[10:20]
    assert sum("/resolve/" in r.path for r in hub.requests) == 2


def test_memory_does_not_follow_the_file(hub: HubServer, source: Path) -> None:
    size = 48 << 20
    with (source / SAFETENSORS.single).open("wb") as opened:
        opened.truncate(size)
    file = resolve(ID, stream=True).remote[SAFETENSORS.single]
    read(file, 0, 1)  # the server has the file in memory now
    buffer = memoryview(bytearray(1 << 20))
    tracemalloc.start()
    with file.open(size) as reader:
        for begin in range(0, size, len(buffer)):
            reader.read_into(buffer, begin)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20
    assert len(hub.ranges()) == 2


def test_a_checkpoint_from_headers_alone(hub: HubServer, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "sharded", shards=3)
    hub.revisions = {"main": folder}
    found = resolve(ID, stream=True)
    here, there = open_checkpoint(folder), open_checkpoint(found.folder, found.remote)
    places = [(t.name, t.dtype, t.shape, t.offset, t.nbytes) for t in here.tensors.values()]
    assert places == [
        (t.name, t.dtype, t.shape, t.offset, t.nbytes) for t in there.tensors.values()
    ]
    headers = sum(header.payload_offset for header in here.headers.values())
    assert sum(last - first + 1 for first, last in hub.ranges()) == headers
    for t in there.tensors.values():
        assert read(t.file, t.offset, t.offset + t.nbytes) == read(
            here.tensors[t.name].file, t.offset, t.offset + t.nbytes
        )
    stored = [p for p in Path(constants.HF_HUB_CACHE).rglob("*") if p.is_file()]
    assert max(p.stat().st_size for p in stored) < 10_000
    assert not [p for p in stored if p.suffix == ".safetensors"]


def test_weights_in_the_cache_are_read_from_there(hub: HubServer) -> None:
    downloaded = resolve(ID)
    assert resolve(ID, stream=True) == downloaded
    assert downloaded.remote == {}


def test_the_stamp_is_of_the_content(hub: HubServer, source: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", seed=1)
    hub.revisions |= {"other": other}
    stamps = [
        resolve(f"{ID}@{r}", stream=True).remote[SAFETENSORS.single].stamp() for r in hub.revisions
    ]
    assert stamps[0] == resolve(ID, stream=True).remote[SAFETENSORS.single].stamp()
    assert stamps[0] != stamps[1]


def test_the_token_stays_with_the_hub(
    hub: HubServer, file: WeightsFile, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "hf_secret"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    for begin in (0, 10):
        assert read(file, begin, begin + 10) == data[begin : begin + 10]
    tokens = [(r.path.startswith("/cdn/"), r.token) for r in hub.requests]
    assert tokens == [(False, "hf_secret"), (True, None), (True, None)]


def test_a_dropped_connection_is_taken_up_where_it_stopped(
    hub: HubServer, file: WeightsFile, data: bytes, waits: list[float]
) -> None:
    hub.fail("drop", CDN, times=2)
    assert read_blocks(file, 0, len(data), 1 << 20) == data
    half, quarter = len(data) // 2, len(data) // 4
    assert hub.ranges() == [(begin, len(data) - 1) for begin in (0, half, half + quarter)]
    assert waits == [WAITS[0]] * 2


def test_a_failure_after_progress_is_a_first_one(
    hub: HubServer,
    file: WeightsFile,
    data: bytes,
    waits: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Within one read: more drops than there are waits, each after bytes enough."""
    monkeypatch.setattr("int8conv.formats.hub.remote._PROGRESS_BYTES", 100)
    times = len(WAITS) + 2
    assert len(data) >> times > 100  # a drop comes after half of the rest
    hub.fail("drop", CDN, times=times)
    assert read(file, 0, len(data)) == data
    assert waits == [WAITS[0]] * times


def test_failures_with_little_progress_use_up_the_patience(
    hub: HubServer,
    file: WeightsFile,
    data: bytes,
    waits: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("int8conv.formats.hub.remote._PROGRESS_BYTES", len(data))
    hub.fail("drop", CDN, times=len(WAITS) + 1)
    with pytest.raises(HubUnavailableError):
        read(file, 0, len(data))
    assert waits == list(WAITS)


def test_connections_that_always_drop(
    hub: HubServer, file: WeightsFile, waits: list[float]
) -> None:
    hub.fail("drop", CDN)
    with pytest.raises(
        HubUnavailableError, match=f"{ID}/model.safetensors.*cannot be read from the hub"
    ):
        read(file, 0, 1000)
    assert waits == list(WAITS)


def test_a_hub_that_goes_away(
    hub: HubServer, file: WeightsFile, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "http://127.0.0.1:1/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(HubUnavailableError, match="check the path, the network"):
        read(file, 0, 1000)
    assert waits == list(WAITS)


@pytest.mark.parametrize("on", [CDN, "/resolve/"])
def test_429_waits_as_long_as_the_hub_asks(
    hub: HubServer, file: WeightsFile, data: bytes, waits: list[float], on: str
) -> None:
    hub.fail(429, on, times=2, headers={"Retry-After": "17"})
    assert read(file, 0, 1000) == data[:1000]
    assert waits == [17, 17]


@pytest.mark.parametrize("status", [500, 503])
def test_a_failure_that_passes(
    hub: HubServer, file: WeightsFile, data: bytes, waits: list[float], status: int
) -> None:
    hub.fail(status, CDN, times=3)
    assert read(file, 0, 1000) == data[:1000]
    assert waits == list(WAITS[:3])


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failure_that_does_not(
    hub: HubServer, file: WeightsFile, waits: list[float], status: int
) -> None:
    hub.fail(status, CDN)
    with pytest.raises(HubUnavailableError, match=f"HTTP {status}"):
        read(file, 0, 1000)
    assert waits == list(WAITS)


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, HubAccessError), (403, HubAccessError), (404, HubNotFoundError), (418, HubUnavailableError)],
)  # fmt: skip
def test_a_refusal_is_final(
    hub: HubServer, file: WeightsFile, waits: list[float], status: int, error: type[Exception]
) -> None:
    hub.fail(status, "/resolve/")
    with pytest.raises(error):
        read(file, 0, 1000)
    assert waits == []


def test_a_server_that_ignores_ranges(hub: HubServer, source: Path) -> None:
    with (source / SAFETENSORS.single).open("wb") as opened:
        opened.truncate(64 << 20)
    file = resolve(ID, stream=True).remote[SAFETENSORS.single]
    hub.fail("whole", CDN)
    sent = hub.sent
    with pytest.raises(HubUnavailableError, match=r"does not support range requests.*HTTP 200"):
        read(file, 0, 1000)
    assert hub.sent - sent < 32 << 20


def test_another_size(hub: HubServer, file: WeightsFile) -> None:
    hub.fail("shorter", CDN)
    with pytest.raises(HubChangedError, match=r"changed while it was being read.*/3145727"):
        read(file, 0, 1000)


def test_another_etag(hub: HubServer, file: WeightsFile) -> None:
    read(file, 0, 1000)
    hub.fail("other headers", CDN, headers={"ETag": '"another"'})
    with pytest.raises(HubChangedError, match='found "another"'):
        read(file, 1000, 2000)


def test_another_part_than_asked_for(hub: HubServer, file: WeightsFile, data: bytes) -> None:
    hub.fail("other headers", CDN, headers={"Content-Range": f"bytes 1-1000/{len(data)}"})
    with pytest.raises(HubChangedError, match="found bytes 1-1000"):
        read(file, 0, 1000)


def test_a_range_that_the_file_no_longer_has(hub: HubServer, file: WeightsFile) -> None:
    hub.fail(416, CDN, headers={"Content-Range": "bytes */5"})
    with pytest.raises(HubChangedError, match=r"found bytes \*/5"):
        read(file, 0, 1000)


def test_a_compressed_answer(hub: HubServer, file: WeightsFile) -> None:
    hub.fail("other headers", CDN, headers={"Content-Encoding": "gzip"})
    with pytest.raises(HubUnavailableError, match="does not support range requests"):
        read(file, 0, 1000)


def test_reading_past_the_end(hub: HubServer, file: WeightsFile, data: bytes) -> None:
    with pytest.raises(TruncatedFileError, match="found 3145728"):
        read(file, 10, len(data) + 1)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("start", "error"),
    [
        (struct.pack("<Q", 2) + b"[]", HeaderSyntaxError),
        (struct.pack("<Q", 1 << 20) + b"{}", TruncatedFileError),
        (struct.pack("<Q", 1 << 60) + b"{}", HeaderTooLongError),
        (b"123", TruncatedFileError),
    ],
)
def test_headers_are_checked_as_those_of_local_files(
    hub: HubServer, source: Path, start: bytes, error: type[Exception]
) -> None:
    (source / SAFETENSORS.single).write_bytes(start)
    with pytest.raises(error) as local:
        read_header(source / SAFETENSORS.single)
    file = resolve(ID, stream=True).remote[SAFETENSORS.single]
    with pytest.raises(error) as remote:
        read_header(file)
    assert str(remote.value) == str(local.value).replace(str(source), ID)


def test_offline(file: WeightsFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnavailableError, match="HF_HUB_OFFLINE is set"):
        read(file, 0, 1000)


def test_pickles_cannot_be_streamed(hub: HubServer, source: Path) -> None:
    write_pickles(source, 2)
    with pytest.raises(ArgumentError, match=r"only safetensors files can be streamed.*-00001-of"):
        resolve(ID, stream=True)
    assert not [name for name in hub.got() if name.endswith(".bin")]
    assert len(open_checkpoint(resolve_headers(ID).folder).headers) == 2
