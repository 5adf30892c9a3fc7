"""Pushing to a hub on this machine, through the hub's library; what is there afterwards is what a user would get."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import int8conv
from int8conv.errors import (
    ArgumentError,
    ChecksumError,
    HubAccessError,
    HubExistsError,
    HubUnavailableError,
    NotConvertedError,
)

from ..hub_server import ID
from ..hub_uploads import UploadHub, an_upload_hub

pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content=:DeprecationWarning"
)  # the hub's library of its HTTP client
EXTRA = {".gitattributes", "README.md"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    with an_upload_hub(monkeypatch, tmp_path) as server:
        yield server


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_arrives_is_the_folder_and_a_card(hub: UploadHub, converted: Path, tmp_path: Path) -> None:  # fmt: skip
    (converted / "notes.txt").write_text("mine")  # not in the manifest
    before = {path: path.read_bytes() for path in converted.iterdir()}
    seen: list[tuple[str, int, int]] = []
    report = int8conv.push(converted, ID, private=True, progress=lambda *a: seen.append(a))
    assert {path: path.read_bytes() for path in converted.iterdir()} == before
    assert hub.private is True
    assert report.commit == f"{hub.url}/{ID}/commit/abc"
    assert (
        names(hub.main) == set(report.files) | EXTRA == (names(converted) - {"notes.txt"}) | EXTRA
    )
    assert all((hub.main / n).read_bytes() == (converted / n).read_bytes() for n in report.files)
    assert (hub.main / "README.md").read_text() == report.card
    assert seen[-1] == ("upload", report.nbytes, report.nbytes)
    assert len(hub.commits) == 1
    assert all(r.agent.startswith("int8conv/") for r in hub.requests if r.path.startswith("/api/models"))  # fmt: skip
    # as a user has it: verified, run by id
    assert int8conv.verify(ID) == int8conv.verify(converted)
    prompt = [5, 6, 7]
    texts = [int8conv.load(path).generate(prompt, max_new_tokens=4).token_ids for path in (ID, converted)]  # fmt: skip
    assert texts[0] == texts[1]


def test_again_sends_nothing_large_and_another_conversion_needs_force(hub: UploadHub, converted: Path, example: Path, tmp_path: Path) -> None:  # fmt: skip
    int8conv.push(converted, ID)
    sent = list(hub.received)
    int8conv.push(converted, ID)
    assert hub.received == sent
    other = tmp_path / "other"
    int8conv.convert_checkpoint(example, other, outliers="none", max_shard_bytes=4_000_000)
    with pytest.raises(HubExistsError, match="another conversion"):
        int8conv.push(other, ID)
    assert int8conv.inspect_folder(hub.main).total.tensors == int8conv.inspect_folder(converted).total.tensors  # fmt: skip
    report = int8conv.push(other, ID, force=True)
    assert report.removed == ("model-00001-of-00001.safetensors",)
    assert names(hub.main) == names(other) | EXTRA
    assert int8conv.verify(hub.main) == int8conv.verify(other)


def test_a_repository_with_something_else_is_never_touched(hub: UploadHub, converted: Path) -> None:
    hub.create(private=False)
    (hub.main / "model.safetensors").write_bytes(b"theirs")
    for force in (False, True):
        with pytest.raises(HubExistsError, match=r"something other.*found model\.safetensors"):
            int8conv.push(converted, ID, force=force)
    assert names(hub.main) == {".gitattributes", "model.safetensors"}


def test_an_interrupted_upload_looks_like_nothing_and_goes_on(hub: UploadHub, converted: Path) -> None:  # fmt: skip
    hub.fail(500, "POST .*/commit/main", times=5)
    with pytest.raises(HubUnavailableError, match="HTTP 500"):
        int8conv.push(converted, ID)
    assert names(hub.main) == {".gitattributes"}
    assert len(hub.received) == 1
    int8conv.push(converted, ID)
    assert len(hub.received) == 1  # the shard was there
    assert names(hub.main) == names(converted) | EXTRA


def test_a_failure_that_passes_is_waited_for(hub: UploadHub, converted: Path) -> None:
    for request in ("POST .*/create", "POST .*/batch", "PUT /store", "POST .*/commit/main"):
        hub.fail(503, request, times=1)
    assert int8conv.push(converted, ID).commit


@pytest.mark.parametrize("token", ["", "reader"])
def test_without_a_token_that_may_write(hub: UploadHub, converted: Path, monkeypatch: pytest.MonkeyPatch, token: str) -> None:  # fmt: skip
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubAccessError, match="HF_TOKEN to a token with write access"):
        int8conv.push(converted, ID)
    assert not hub.revisions


def test_a_damaged_folder_is_not_sent(hub: UploadHub, converted: Path, example: Path) -> None:
    with pytest.raises(NotConvertedError):
        int8conv.push(example, ID)
    shard = next(converted.glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ChecksumError):
        int8conv.push(converted, ID)
    assert not hub.revisions


@pytest.mark.parametrize("name", ["model", "org/name@main", "a/b/c", "org/..", ""])
def test_a_name_that_is_none(converted: Path, name: str) -> None:
    with pytest.raises(ArgumentError, match="expected org/name"):
        int8conv.push(converted, name)


def test_a_dry_run_asks_nothing(hub: UploadHub, converted: Path, tmp_path: Path) -> None:
    report = int8conv.push(converted, ID, dry_run=True)
    assert (report.commit, hub.requests) == (None, [])
    assert set(report.files) == names(converted)


def test_an_evaluation_is_in_the_card(converted: Path, tmp_path: Path) -> None:
    figures = tmp_path / "eval.json"
    against = {"ratio": 1.00042, "kl_mean": 0.0012, "kl_worst": 0.03, "top1": 0.987}
    figures.write_text(json.dumps({"mode": "w8a8", "scored": 511, "text": "ab", "against": against}))  # fmt: skip
    card = int8conv.push(converted, ID, evaluation=figures, dry_run=True).card
    assert all(text in card for text in ("1.00042", "1.200e-03 nats", "98.70%", "w8a8 on 511 tokens"))  # fmt: skip
    figures.write_text(json.dumps({"mode": "w8a8", "against": None}))
    with pytest.raises(ArgumentError, match="not an evaluation against a source"):
        int8conv.push(converted, ID, evaluation=figures, dry_run=True)


def test_a_copy_of_the_folder_that_lost_a_file(converted: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(converted, tmp_path / "copy"))
    (copy / "tokenizer.json").unlink()
    with pytest.raises(int8conv.Int8convError, match=r"tokenizer\.json"):
        int8conv.push(copy, ID, dry_run=True)
