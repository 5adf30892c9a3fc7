"""Converted models that the tests of this room share, one for each family; not to be changed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from .models import convert


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``model_type`` -> its converted folder."""

    @cache
    def converted(name: str) -> Path:
        return convert(name, tmp_path_factory.mktemp(name))

    return converted
