"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from int8conv.convert.converter import convert_checkpoint

from .checkpoints import write_checkpoint

os.environ.setdefault(
    "TRITON_INTERPRET", "1"
)  # kernels are tested on CPU tensors; read when triton is imported
signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a job in the background ignores it, and so would what it starts


@pytest.fixture(scope="session")
def example() -> Path:
    """The real trained checkpoint of the repository."""
    return Path(__file__).parent.parent / "examples" / "small-llama"


@pytest.fixture(scope="session")
def example_int8(example: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That checkpoint converted with calibrated outlier columns; not to be changed."""
    out = tmp_path_factory.mktemp("example") / "int8"
    convert_checkpoint(example, out)
    return out


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small random Llama checkpoint, F16, in one file; to be changed at will."""
    return write_checkpoint(tmp_path / "source")


@pytest.fixture
def converted(example_int8: Path, tmp_path: Path) -> Path:
    """A copy of the converted example; to be changed at will."""
    return Path(shutil.copytree(example_int8, tmp_path / "converted"))
