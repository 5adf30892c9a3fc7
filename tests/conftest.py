"""Fixtures that every room's tests share."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from int8conv.convert.converter import convert_checkpoint

from .checkpoints import write_checkpoint

os.environ.setdefault(
    "TRITON_INTERPRET", "1"
)  # kernels are tested on CPU tensors; read when triton is imported
_COMPILED = Path(__file__).parent.parent.glob("int8conv/kernels/cpu/jit_*.py")
_STATE = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(_COMPILED))).hexdigest()[:12]
os.environ.setdefault(
    "NUMBA_CACHE_DIR", str(Path(tempfile.gettempdir(), f"int8conv-numba-{_STATE}"))
)  # numba does not see that a function in another file has changed
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
