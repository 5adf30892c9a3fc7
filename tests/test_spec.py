"""Every rule of SPEC.md has a test that says so, and no test names a rule that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import int8conv

TESTS = Path(__file__).parent
RULE = re.compile(r"\[([A-Z]\d+)\]")
MARK = re.compile(r"pytest\.mark\.rule\(\"(\w+)\"\)")


def rules() -> set[str]:
    """Names in brackets: where a rule is stated, and where it is referred to."""
    page = Path(int8conv.__file__).parent / "formats" / "SPEC.md"
    introduction, _, text = page.read_text(encoding="utf-8").partition("\n## ")
    assert "[H1]" in introduction  # the example of what a name looks like
    return set(RULE.findall(text))


def marked() -> set[str]:
    texts = (path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py"))
    return {name for text in texts for name in MARK.findall(text)}


def test_the_page_has_rules() -> None:
    assert len(rules()) >= 40


def test_every_rule_has_a_test() -> None:
    assert rules() - marked() == set()


def test_every_mark_names_a_rule() -> None:
    assert marked() - rules() == set()


def test_every_list_of_rules_is_without_gaps() -> None:
    """A name is never reused, so one that is missing would be one that was lost."""
    by_letter: dict[str, list[int]] = {}
    for name in rules():
        by_letter.setdefault(name[0], []).append(int(name[1:]))
    for letter, numbers in by_letter.items():
        assert sorted(numbers) == list(range(1, len(numbers) + 1)), letter
