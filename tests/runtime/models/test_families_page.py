"""``docs/families.md`` says what the code says."""

from __future__ import annotations

import json
from pathlib import Path

from int8conv.runtime.models.architecture import read_architecture
from int8conv.runtime.models.families import FAMILIES
from int8conv.runtime.models.families.releases import RELEASES
from int8conv.runtime.models.families.table import page, runs_fused

from .test_families import CONFIGS, config_of
from .test_releases import REFUSED

PAGE = Path(__file__).parents[3] / "docs" / "families.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == page()


def test_every_family_has_two_rows() -> None:
    assert all(page().count(f"| `{model_type}` |") == 2 for model_type in FAMILIES)


def test_where_a_family_runs() -> None:
    """As its config says: compiled layers lack a feature of it."""
    for name in CONFIGS:
        if "," in name:
            continue
        family = FAMILIES[CONFIGS[name][0]]
        config = read_architecture(config_of(name).to_dict(), ()).config
        parts = config.experts or config.norm_rotated or config.sinks or config.recurrence
        parts = parts or config.latent or config.norms == "after sum" or config.value_norm
        parts = parts or config.activation == "xielu"
        assert runs_fused(family) == (not parts), name


def test_releases_are_those_of_the_tests() -> None:
    files = json.loads(Path(__file__).with_name("releases.json").read_text())
    known = {name: config["model_type"] for name, config in files.items() if name not in REFUSED}
    assert {name: family for family, names in RELEASES.items() for name in names} == known
