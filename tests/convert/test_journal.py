"""What a journal keeps from one attempt to the next, wherever it was cut off or damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from int8conv.convert.journal import JOURNAL_FILE, Journal

ENTRIES = {"a": {"checksum": "00"}, "b": [1, 2.5, None], "größe": "x"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Of a stopped attempt."""
    journal = Journal(tmp_path, "mine")
    for key, value in ENTRIES.items():
        journal.record(key, value)
    return tmp_path / JOURNAL_FILE


def opened(file: Path, fingerprint: str = "mine") -> tuple[bool, bool, dict[str, Any]]:
    journal = Journal(file.parent, fingerprint)
    return journal.resumed, journal.outdated, journal.entries


def test_a_new_workspace(tmp_path: Path) -> None:
    """Neither resumed nor outdated; the fingerprint is there before the first tensor."""
    assert opened(tmp_path / JOURNAL_FILE) == (False, False, {})
    assert json.loads((tmp_path / JOURNAL_FILE).read_text()) == {"fingerprint": "mine"}


def test_the_same_source_and_options_go_on(file: Path) -> None:
    assert opened(file) == (True, False, ENTRIES)
    assert opened(file) == (True, False, ENTRIES)


def test_entries_are_there_as_soon_as_they_are_recorded(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "mine")
    journal.record("a", 1)
    assert journal.entries == {"a": 1}
    assert opened(tmp_path / JOURNAL_FILE)[2] == {"a": 1}


def test_another_source_or_other_options_begin_again(file: Path) -> None:
    assert opened(file, "other") == (False, True, {})
    assert opened(file, "other") == (True, False, {})
    assert opened(file) == (False, True, {})


def test_the_last_line_of_a_key_counts(file: Path) -> None:
    Journal(file.parent, "mine").record("a", "again")
    assert opened(file)[2] == ENTRIES | {"a": "again"}


def test_a_journal_cut_off_anywhere_keeps_its_whole_lines(file: Path) -> None:
    """At every byte; the next line that is recorded does not run into the rest of the one that was cut."""
    data = file.read_bytes()
    for size in range(len(data) + 1):
        file.write_bytes(data[:size])
        whole = data[:size].count(b"\n")
        expected = dict(list(ENTRIES.items())[: max(whole - 1, 0)])
        assert opened(file) == (whole > 0, False, expected)
        Journal(file.parent, "mine").record("next", size)
        assert opened(file)[2] == expected | {"next": size}


@pytest.mark.parametrize(
    "line",
    [
        b"", b"{", b"5", b"[]", b'"key"', b"\xff", b"\0\0\0", b'{"key": "b"}', b'{"value": 1}',
        b'{"key": "b", "value": 1, "more": 2}', b'{"fingerprint": "mine"}',
        b'{"key": ["b"], "value": 1}', b'{"key": 7, "value": 1}', b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_damaged_line_and_what_follows_do_not_count(file: Path, line: bytes) -> None:
    lines = file.read_bytes().split(b"\n")
    file.write_bytes(b"\n".join([*lines[:2], line, *lines[2:]]))
    assert opened(file) == (True, False, {"a": ENTRIES["a"]})


@pytest.mark.parametrize("first", [b"", b"{}", b"7", b'{"key": "a", "value": 1}', b"\xff\xfe"])
def test_a_journal_without_a_fingerprint_is_none(file: Path, first: bytes) -> None:
    file.write_bytes(b"\n".join([first, *file.read_bytes().split(b"\n")[1:]]))
    assert opened(file) == (False, False, {})
