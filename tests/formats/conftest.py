"""Converted folders of the shapes that the rules speak of, and a hub on this machine."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from int8conv.convert.converter import convert_checkpoint

from ..checkpoints import OPT, random_tensors, write_checkpoint
from ..hub_server import HubServer, use_hub


@pytest.fixture(scope="session")
def small_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small OPT with biases, and with outlier channels at the inputs of q, k, v and of fc1; not to be changed."""
    tensors = random_tensors(OPT)
    for name, tensor in tensors.items():
        if name.endswith("layer_norm.weight"):
            tensor[5] = 40
    return write_checkpoint(tmp_path_factory.mktemp("small") / "source", OPT, tensors)


@pytest.fixture(scope="session")
def small_int8(small_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That checkpoint converted, in several shards; not to be changed."""
    out = tmp_path_factory.mktemp("small") / "int8"
    convert_checkpoint(small_source, out, max_shard_bytes=60_000)
    return out


@pytest.fixture
def small(small_int8: Path, tmp_path: Path) -> Path:
    """A copy of it; to be changed at will."""
    return Path(shutil.copytree(small_int8, tmp_path / "small"))


@pytest.fixture
def hub(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub with ``source`` on its main branch, which the hub's library in this process uses with an empty cache."""
    with HubServer({"main": source}).running() as server:
        use_hub(monkeypatch, server.url, tmp_path / "home")
        yield server


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Takes the place of waiting: the seconds that somebody wanted to wait."""
    asked: list[float] = []
    monkeypatch.setattr(time, "sleep", asked.append)
    return asked
