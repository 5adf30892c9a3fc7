"""Repositories to upload to: names, what is there, what may be replaced. The uploads themselves: tests/publish/test_push.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub.utils import are_progress_bars_disabled

from int8conv.errors import HubAccessError, HubExistsError, HubUnavailableError
from int8conv.formats.hub.upload import Repository

from ...hub_server import ID
from ...hub_uploads import UploadHub, an_upload_hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    with an_upload_hub(monkeypatch, tmp_path) as server:
        yield server


def test_what_is_there(hub: UploadHub, tmp_path: Path) -> None:
    repository = Repository(ID)
    manifest = tmp_path / "int8conv.json"
    manifest.write_text("{}")
    assert repository.files() is None
    assert repository.check(manifest, force=False) == frozenset()
    repository.create(private=False)
    repository.create(private=False)
    assert repository.files() == {".gitattributes"}
    assert repository.check(manifest, force=False) == {".gitattributes"}
    (hub.main / "int8conv.json").write_text("{}")
    assert repository.check(manifest, force=False) == {".gitattributes", "int8conv.json"}
    manifest.write_text('{"other": 1}')
    with pytest.raises(HubExistsError, match="--force"):
        repository.check(manifest, force=False)
    assert repository.check(manifest, force=True) == {".gitattributes", "int8conv.json"}


def test_the_librarys_bars_are_as_before(hub: UploadHub) -> None:
    before = are_progress_bars_disabled()
    Repository(ID).files()
    assert are_progress_bars_disabled() == before


def test_faults(hub: UploadHub) -> None:
    hub.fail(500, "GET /api")
    with pytest.raises(HubUnavailableError):
        Repository(ID).files()
    hub.faults.clear()
    hub.fail(403, "POST /api/repos/create")
    hub.fail(403, f"GET /api/models/{ID}")
    with pytest.raises(HubAccessError, match="does not allow writing"):
        Repository(ID).create(private=False)
