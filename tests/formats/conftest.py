"""Converted folders of the shapes that the rules speak of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from int8conv.convert.converter import convert

from ..checkpoints import OPT, random_tensors, write_checkpoint


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
    convert(small_source, out, max_shard_bytes=60_000)
    return out


@pytest.fixture
def small(small_int8: Path, tmp_path: Path) -> Path:
    """A copy of it; to be changed at will."""
    return Path(shutil.copytree(small_int8, tmp_path / "small"))
