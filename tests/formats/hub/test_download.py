"""Sources by their id: what is asked of the hub, what comes of it, and what each failure is called."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from int8conv.errors import (
    HubAccessError,
    HubNotFoundError,
    HubUnavailableError,
    Int8convError,
    JsonFileError,
    NotFoundError,
    NotWritableError,
    UnsafePathError,
)
from int8conv.formats.hub.download import parse_id, resolve
from int8conv.formats.hub.failures import WAITS
from int8conv.formats.source.checkpoint import open_checkpoint
from int8conv.formats.source.metadata_files import find_metadata_files

from ...checkpoints import LLAMA, random_tensors, write_checkpoint
from ...hub_server import ID, HubServer

WEIGHTS = r"GET /cdn/.*safetensors"


def write_pickles(folder: Path, shards: int) -> None:
    """PyTorch pickles in the place of the safetensors file: one, or several with an index."""
    (folder / "model.safetensors").unlink()
    tensors = random_tensors(LLAMA)
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return
    weight_map = {}
    for number in range(shards):
        name = f"pytorch_model-{number + 1:05}-of-{shards:05}.bin"
        part = dict(list(tensors.items())[number::shards])
        torch.save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("org/name", ("org/name", None)),
        ("org/name@v1.0", ("org/name", "v1.0")),
        ("org/name@refs/pr/1", ("org/name", "refs/pr/1")),
        ("meta-llama/Llama-3.1-8B", ("meta-llama/Llama-3.1-8B", None)),
        ("name", None),
        ("./org/name", None),
        ("/org/name", None),
        ("../name", None),
        ("org/name/", None),
        ("org/name/file", None),
        ("org/na me", None),
        ("org/name@", None),
        ("org/name@../../x", None),
        ("org/name@a//b", None),
        ("", None),
    ],
)
def test_which_texts_are_ids(text: str, parsed: tuple[str, str | None] | None) -> None:
    assert parse_id(text) == parsed


def test_a_path_that_exists_wins(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ID).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    found = resolve(ID)
    assert (found.folder, found.id, found.revision) == (Path(ID), "small.model-1", None)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["no-such", "./no/such", "a/b/c", Path("some-org/x")])
def test_neither_a_path_nor_an_id(hub: HubServer, name: str | Path) -> None:
    with pytest.raises(NotFoundError, match="no such folder, and not a hub id"):
        resolve(name)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["org/na--me", "org/name.git"])
def test_an_id_that_the_library_refuses(hub: HubServer, name: str) -> None:
    with pytest.raises(NotFoundError, match="not a hub id"):
        resolve(name)
    assert hub.requests == []


@pytest.mark.parametrize("by", ["branch", "tag", "commit", "default"])
def test_a_revision_becomes_its_commit(hub: HubServer, tmp_path: Path, by: str) -> None:
    hub.revisions |= {name: write_checkpoint(tmp_path / name, seed=1) for name in ("dev", "v1.0")}
    revision = {"branch": "dev", "tag": "v1.0", "commit": hub.commit("dev"), "default": ""}[by]
    name = "main" if by == "default" else "v1.0" if by == "tag" else "dev"
    found = resolve(f"{ID}@{revision}" if revision else ID)
    assert (found.id, found.revision) == (ID, hub.commit(name))
    for file in hub.revisions[name].iterdir():
        assert (found.folder / file.name).read_bytes() == file.read_bytes()
    assert found.folder.is_relative_to(constants.HF_HUB_CACHE)


def test_only_what_is_needed_is_downloaded(hub: HubServer, source: Path) -> None:
    (source / "additional_chat_templates").mkdir()
    template = "additional_chat_templates/rag.jinja"
    for name in ("tokenizer.json", "merges.txt", "LICENSE", "chat_template.jinja", template):
        (source / name).write_text(json.dumps({"name": name}))
    unwanted = (
        "pytorch_model.bin", "model.gguf", "README.md", "onnx/model.onnx", "onnx/config.json",
        "original/tokenizer.model", "tf_model.h5", ".gitattributes", "other.safetensors",
        "additional_chat_templates/old/rag.jinja", "additional_chat_templates/x.json", "additional/x.jinja",
        "additional_chat_templates_2/x.jinja", "a/x.jinja", "another/additional_chat_templates/x.jinja",
    )  # fmt: skip
    for name in unwanted:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"x" * 100)
    folder = resolve(ID).folder
    assert template in find_metadata_files(folder, {}).names  # though a cache is made of links
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "merges.txt", "LICENSE"}
    assert hub.got() == wanted | {"chat_template.jinja", template}
    assert all("int8conv/" in r.agent for r in hub.requests if "/resolve/" in r.path)


def test_nothing_is_downloaded_twice(hub: HubServer) -> None:
    first = resolve(ID)
    hub.requests.clear()
    assert resolve(ID) == first
    assert hub.got() == set()


def test_a_branch_that_moved_is_noticed(hub: HubServer, tmp_path: Path) -> None:
    before = resolve(ID)
    hub.revisions = {"next": write_checkpoint(tmp_path / "next", seed=1)}
    hub.fail(404, "revision/main", headers={"X-Error-Code": "RevisionNotFound"})
    after = resolve(f"{ID}@next")
    assert before.revision != after.revision
    assert before.folder != after.folder


@pytest.mark.parametrize("shards", [1, 3])
def test_shards_by_the_index(hub: HubServer, tmp_path: Path, shards: int) -> None:
    hub.revisions = {"main": write_checkpoint(tmp_path / "sharded", shards=shards)}
    found = resolve(ID)
    assert set(open_checkpoint(found.folder).tensors) == set(random_tensors(LLAMA))
    assert len([name for name in hub.got() if name.endswith(".safetensors")]) == shards


@pytest.mark.parametrize("shards", [1, 2])
def test_a_repository_with_pickles_only(hub: HubServer, source: Path, shards: int) -> None:
    write_pickles(source, shards)
    found = resolve(ID)
    assert set(open_checkpoint(found.folder).tensors) == set(random_tensors(LLAMA))
    assert len([name for name in hub.got() if name.endswith(".bin")]) == shards
    hub.requests.clear()
    assert resolve(ID) == found
    assert hub.got() == set()


def test_safetensors_are_taken_before_pickles(hub: HubServer, source: Path) -> None:
    safe = (source / "model.safetensors").read_bytes()
    write_pickles(source, 2)
    (source / "model.safetensors").write_bytes(safe)
    resolve(ID)
    assert not [name for name in hub.got() if name.endswith(".bin")]


def test_a_repository_that_lacks_a_shard(hub: HubServer, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "sharded", shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    hub.revisions = {"main": folder}
    with pytest.raises(
        HubNotFoundError, match=r"missing from the repository: expected model-00002-of-00003"
    ):
        resolve(ID)
    assert hub.got() == {"config.json", "model.safetensors.index.json"}


def test_a_repository_without_config(hub: HubServer, source: Path) -> None:
    (source / "config.json").unlink()
    with pytest.raises(
        HubNotFoundError, match=r"missing from the repository: expected config\.json"
    ):
        resolve(ID)
    assert hub.got() == set()


@pytest.mark.parametrize("name", ["model.gguf", "model.onnx", "notes.md"])
def test_a_repository_without_weights_of_a_known_kind(
    hub: HubServer, source: Path, name: str
) -> None:
    (source / "model.safetensors").rename(source / name)
    found = "no weights" if name == "notes.md" else name
    with pytest.raises(NotFoundError, match=f"no checkpoint in this repository.*found {found}"):
        resolve(ID)


@pytest.mark.parametrize(
    ("weight_map", "error"), [({"a": "../../x"}, UnsafePathError), ({}, JsonFileError)]
)
def test_a_malformed_index(
    hub: HubServer, source: Path, weight_map: dict[str, str], error: type[Exception]
) -> None:
    index = source / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(error):
        resolve(ID)
    assert "model.safetensors" not in hub.got()


@pytest.mark.parametrize("kept", ["environment", "file"])
def test_the_token_goes_to_the_hub_and_to_nobody_else(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    hub.token = "hf_secret"
    if kept == "environment":
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
    else:
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "token").write_text("hf_secret\n")
    resolve(ID)
    assert {r.token for r in hub.requests if not r.path.startswith("/cdn/")} == {"hf_secret"}
    assert {r.token for r in hub.requests if r.path.startswith("/cdn/")} == {None}


@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_401(hub: HubServer, monkeypatch: pytest.MonkeyPatch, token: str | None) -> None:
    hub.token = "hf_secret"
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubAccessError, match="denies access to this repository: found HTTP 401"):
        resolve(ID)


def test_403_gated(hub: HubServer) -> None:
    hub.fail(403, "/resolve/", headers={"X-Error-Code": "GatedRepo"})
    with pytest.raises(HubAccessError, match="access to this repository is gated"):
        resolve(ID)


def test_403(hub: HubServer) -> None:
    hub.fail(403, "/api/")
    with pytest.raises(HubAccessError, match="HTTP 403"):
        resolve(ID)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("some-org/other", "no such repository on the hub"),
        (f"{ID}@no-such", "no such revision in this repository"),
        (f"{ID}@{'0' * 40}", "no such revision in this repository"),
    ],
)
def test_404(hub: HubServer, name: str, problem: str) -> None:
    with pytest.raises(HubNotFoundError, match=problem) as caught:
        resolve(name)
    assert caught.value.file == name


def test_404_of_a_file(hub: HubServer) -> None:
    hub.fail(404, WEIGHTS)
    with pytest.raises(HubNotFoundError, match="a file is not on the hub"):
        resolve(ID)


@pytest.mark.parametrize("on", ["/api/models/.*/revision", "/api/models/.*/tree", WEIGHTS])
def test_429_waits_as_long_as_the_hub_asks(hub: HubServer, waits: list[float], on: str) -> None:
    hub.fail(429, on, times=2, headers={"Retry-After": "17"})
    assert resolve(ID).revision == hub.commit()
    assert [seconds >= 17 for seconds in waits] == [True, True]


def test_429_for_good(hub: HubServer, waits: list[float]) -> None:
    hub.fail(429, "/api/", headers={"RateLimit": '"api";r=0;t=33'})
    with pytest.raises(HubUnavailableError, match="too many requests to the hub: found HTTP 429"):
        resolve(ID)
    assert waits == [33] * len(WAITS)


@pytest.mark.parametrize("status", [500, 503])
@pytest.mark.parametrize("on", ["/api/models/.*/revision", "HEAD .*config", WEIGHTS])
def test_a_failure_that_passes(hub: HubServer, waits: list[float], status: int, on: str) -> None:
    hub.fail(status, on, times=2)
    assert resolve(ID).revision == hub.commit()
    assert waits


@pytest.mark.parametrize("on", ["/api/", WEIGHTS])
def test_a_failure_that_does_not_pass(hub: HubServer, waits: list[float], on: str) -> None:
    hub.fail(503, on)
    with pytest.raises(HubUnavailableError, match="the hub returned an error: found HTTP 503"):
        resolve(ID)
    assert sum(waits) >= sum(WAITS)


def test_a_dropped_connection(hub: HubServer, source: Path, waits: list[float]) -> None:
    hub.fail("drop", WEIGHTS, times=2)
    found = resolve(ID)
    data = (source / "model.safetensors").read_bytes()
    assert (found.folder / "model.safetensors").read_bytes() == data
    assert sum(r.path.startswith("/cdn/") for r in hub.requests) == 3


def test_connections_that_always_drop(hub: HubServer, waits: list[float]) -> None:
    hub.fail("drop", "GET /api/")
    with pytest.raises(HubUnavailableError, match="cannot be read from the hub"):
        resolve(ID)
    assert waits == list(WAITS)


def test_a_truncated_file(hub: HubServer, waits: list[float]) -> None:
    hub.fail("shorter", WEIGHTS)
    with pytest.raises(HubUnavailableError, match="Consistency check failed"):
        resolve(ID)
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.safetensors"))


def test_offline_with_a_filled_cache(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    online = resolve(ID)
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve(ID) == online
    assert resolve(f"{ID}@{hub.commit()}") == online
    assert hub.requests == []


def test_offline_with_pickles_in_the_cache(
    hub: HubServer, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pickles(source, 2)
    online = resolve(ID)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve(ID) == online


@pytest.mark.parametrize("cached", ["nothing", "another revision", "small files"])
def test_offline_without(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: str
) -> None:
    if cached == "another revision":
        hub.revisions["dev"] = write_checkpoint(tmp_path / "dev", seed=1)
        resolve(f"{ID}@dev")
    elif cached == "small files":
        resolve(ID, stream=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnavailableError, match="HF_HUB_OFFLINE is set"):
        resolve(ID)


def test_a_hub_out_of_reach(hub: HubServer, waits: list[float], tmp_path: Path) -> None:
    online = resolve(ID)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
        assert resolve(ID) == online
        patch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
        with pytest.raises(
            HubUnavailableError, match=r"\(check the path, the network, and HF_ENDPOINT"
        ):
            resolve(ID)
    assert waits == []  # the network is off: nobody waits for it


def test_a_cache_that_cannot_be_written(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(NotWritableError, match="cannot download to the hub's cache"):
        resolve(ID)


def test_every_error_names_the_source_in_one_line(hub: HubServer, waits: list[float]) -> None:
    faults: list[tuple[Any, str]] = [(500, "/api/"), (418, "/api/"), ("drop", "/api/"), (404, ".")]
    for what, on in faults:
        hub.faults.clear()
        hub.fail(what, on)
        with pytest.raises(Int8convError) as caught:
            resolve(ID)
        assert str(caught.value).startswith(f"{ID}: ")
        assert "\n" not in str(caught.value)


def test_the_library_is_left_as_it_was(
    hub: HubServer, waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    hub.fail(429, WEIGHTS, times=1)
    resolve(ID)
    assert caplog.records == []
    assert logger.level == before


def test_progress_is_for_terminals(hub: HubServer, capfd: pytest.CaptureFixture[str]) -> None:
    resolve(ID)
    assert capfd.readouterr() == ("", "")


def test_a_broken_download_is_not_taken_for_a_whole_one(
    hub: HubServer, tmp_path: Path, waits: list[float]
) -> None:
    folder = write_checkpoint(tmp_path / "sharded", shards=3)
    hub.revisions = {"main": folder}
    hub.fail(503, "GET /cdn/.*00002")
    with pytest.raises(HubUnavailableError):
        resolve(ID)
    hub.faults.clear()
    found = resolve(ID)
    assert set(open_checkpoint(found.folder).tensors) == set(random_tensors(LLAMA))
    shutil.rmtree(found.folder)
