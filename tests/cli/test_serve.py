"""``int8conv serve``: what it refuses before it listens."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from int8conv.cli.serve import listen
from int8conv.errors import OutputError

from .helpers import check_refused, run


def test_an_extra_that_is_not_installed_is_named(
    example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name == "uvicorn":
            raise ImportError(name, name=name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    check_refused(run("serve", example), "found uvicorn", "pip install 'int8conv[serve]'")


def test_an_address_in_use_is_a_line() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            OutputError, match=f"cannot listen at 127.0.0.1:{port}: Address already"
        ):
            listen("127.0.0.1", port)
    with pytest.raises(OutputError, match=r"cannot listen at 192\.0\.2\.1:0"):
        listen("192.0.2.1", 0)


def test_a_folder_without_a_tokenizer_is_refused(example: Path, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(example / name)
    check_refused(run("serve", tmp_path, "--port", 0), tmp_path, "no tokenizer in this folder")
