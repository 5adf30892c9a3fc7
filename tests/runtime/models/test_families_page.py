"""``docs/families.md`` says what the code says."""

from __future__ import annotations

from pathlib import Path

from int8conv.runtime.models.families import FAMILIES
from int8conv.runtime.models.families.table import page

PAGE = Path(__file__).parents[3] / "docs" / "families.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == page()


def test_every_family_has_a_row() -> None:
    assert all(f"| `{model_type}` |" in page() for model_type in FAMILIES)
