"""Which transformers will do, and what is said of one that will not."""

from __future__ import annotations

import importlib.metadata

import pytest

from int8conv.errors import ArgumentError, UnsupportedFeatureError
from int8conv.hf import versions


def pretend(monkeypatch: pytest.MonkeyPatch, found: str | None) -> None:
    def version(name: str) -> str:
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(versions, "version", version)


def test_what_is_too_old_or_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    versions.check_versions()
    pretend(monkeypatch, None)
    with pytest.raises(ArgumentError, match=r"needs transformers \(pip install 'int8conv\[hf\]'\)"):
        versions.check_versions()
    pretend(monkeypatch, "4.57.1")
    with pytest.raises(ArgumentError, match=r"expected 5.0 or newer, found 4.57"):
        versions.check_versions()
    pretend(monkeypatch, "5.20.2")
    versions.check_versions()
    with pytest.raises(
        UnsupportedFeatureError,
        match=r"'a.weight'.*expected transformers 5.21 or newer, found 5.20",
    ):
        versions.check_dequantizes("a")
    pretend(monkeypatch, "5.21.0.dev0")
    versions.check_dequantizes("a")
