"""``int8conv push``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ..hub_server import ID
from ..hub_uploads import an_upload_hub
from .helpers import check_refused, run

pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content=:DeprecationWarning"
)  # the hub's library of its HTTP client


def test_push_and_its_report(converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    with an_upload_hub(monkeypatch, tmp_path) as hub:
        dry = run("push", converted, ID, "--dry-run")
        assert dry.exit_code == 0
        assert "library_name: int8conv\n" in dry.output
        assert dry.output.endswith("nothing was uploaded\n")
        assert hub.requests == []
        done = run("push", converted, ID, "--private")
        assert done.exit_code == 0, done.output
        assert done.output.startswith(f"{ID}: 7 files, ")
        report = json.loads(run("push", converted, ID, "--json").output)
        assert report["commit"].startswith(hub.url)
        assert report["bytes"] == sum(report["files"].values())
        monkeypatch.setenv("HF_TOKEN", "")
        check_refused(run("push", converted, ID), "write access")


def test_wrong_arguments(converted: Path, tmp_path: Path) -> None:
    check_refused(run("push", converted, "name"), "expected org/name")
    missing = tmp_path / "none.json"
    check_refused(run("push", converted, ID, "--dry-run", "--eval", missing), missing)
    check_refused(run("push", tmp_path, ID, "--dry-run"), tmp_path)
