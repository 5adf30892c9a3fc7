"""What a journal keeps from one attempt to the next, wherever it was cut off or damaged."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from int8conv.convert.journal import JOURNAL_FILE, Journal

ENTRIES = {"a": {"checksum": "00"}, "b": [1, 2.5, None], "größe": "x"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Of a stopped attempt."""
    record(tmp_path, **ENTRIES)
    return tmp_path / JOURNAL_FILE


def record(workspace: Path, **entries: Any) -> None:
    journal = Journal(workspace, "mine")
    for key, value in entries.items():
        journal.record(key, value)
    journal.close()


def opened(file: Path, fingerprint: str = "mine") -> tuple[bool, bool, dict[str, Any]]:
    """Whether it goes on, whether it is of something else, and what it has."""
    journal = Journal(file.parent, fingerprint)
    journal.close()
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
    journal.close()


def test_another_source_or_other_options_begin_again(file: Path) -> None:
    assert opened(file, "other") == (False, True, {})
    assert opened(file, "other") == (True, False, {})
    assert opened(file) == (False, True, {})


def test_the_last_line_of_a_key_counts(file: Path) -> None:
    record(file.parent, a="again")
    assert opened(file)[2] == ENTRIES | {"a": "again"}


def test_a_journal_cut_off_anywhere_keeps_its_whole_lines(file: Path) -> None:
    """At every byte; the next line that is recorded does not run into the rest of the one that was cut."""
    data = file.read_bytes()
    for size in range(len(data) + 1):
        file.write_bytes(data[:size])
        whole = data[:size].count(b"\n")
        expected = dict(list(ENTRIES.items())[: max(whole - 1, 0)])
        assert opened(file) == (whole > 0, size > 0 and not whole, expected)
        record(file.parent, next=size)
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
def test_a_journal_without_a_fingerprint_is_of_something_else(file: Path, first: bytes) -> None:
    file.write_bytes(b"\n".join([first, *file.read_bytes().split(b"\n")[1:]]))
    assert opened(file) == (False, True, {})


@pytest.mark.parametrize("change", [(b"00", b"01"), (b'"a"', b'"c"'), (b'"sum": "', b'"sum": "0')])
def test_an_entry_that_is_not_what_was_recorded(file: Path, change: tuple[bytes, bytes]) -> None:
    """Each line has a checksum of its own: one that was changed does not count, nor do those after it."""
    head, entry, *rest = file.read_bytes().split(b"\n")
    assert change[0] in entry
    file.write_bytes(b"\n".join([head, entry.replace(*change, 1), *rest]))
    assert opened(file) == (True, False, {})


def test_entries_of_another_conversion_do_not_count(tmp_path: Path) -> None:
    """Under the fingerprint of this one: the checksums of lines depend on it."""
    other = Journal(tmp_path, "other")
    other.record("a", 1)
    other.close()
    file = tmp_path / JOURNAL_FILE
    file.write_bytes(file.read_bytes().replace(b'"other"', b'"mine"'))
    assert opened(file) == (True, False, {})


def test_threads_record_whole_lines(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "mine")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: journal.record(f"t{i}", "x" * 1000), range(200)))
    journal.close()
    assert opened(tmp_path / JOURNAL_FILE)[2] == {f"t{i}": "x" * 1000 for i in range(200)}
