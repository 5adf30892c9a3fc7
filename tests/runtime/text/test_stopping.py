"""Stop strings: the same text comes through wherever its pieces are cut."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from int8conv.errors import ArgumentError
from int8conv.runtime.text.stopping import StopScanner, read_stops


def shown(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    scanner = StopScanner(stops)
    text = "".join(scanner.push(piece) for piece in pieces)
    return text + scanner.finish(), scanner.stopped


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        (["one two"], ["END"], ("one two", False)),
        (["one END two"], ["END"], ("one ", True)),
        (["one E", "N", "D two"], ["END"], ("one ", True)),
        (["one E", "N", "T two"], ["END"], ("one ENT two", False)),
        (["END"], ["END"], ("", True)),
        (["a EN"], ["END"], ("a EN", False)),
        (["aab"], ["ab"], ("a", True)),
        (["a", "a", "b"], ["ab"], ("a", True)),
        (["x\n", "\n", "y"], ["\n\n", "zzz"], ("x", True)),
        (["abcd"], ["abcd", "bc"], ("a", True)),
        (["xab"], ["ab", "xab"], ("", True)),
        (["größ", "er"], ["ße"], ("grö", True)),
        (["text"], [], ("text", False)),
    ],
)
def test_stop_strings(pieces: list[str], stops: list[str], expected: tuple[str, bool]) -> None:
    assert shown(pieces, stops) == expected


_text = st.text("ab\n", max_size=12)


@given(st.lists(_text, max_size=6), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3))
def test_pieces_do_not_matter(pieces: list[str], stops: list[str]) -> None:
    whole = "".join(pieces)
    ends = [whole.find(stop) + len(stop) for stop in stops if stop in whole]
    if not ends:
        expected = (whole, False)
    else:
        text = whole[: min(ends)]
        longest = max((stop for stop in stops if text.endswith(stop)), key=len)
        expected = (text.removesuffix(longest), True)
    assert shown(pieces, stops) == shown(list(whole), stops) == expected


@given(_text, st.text("ab\n", min_size=1, max_size=4))
def test_nothing_waits_that_cannot_be_a_stop_string(text: str, stop: str) -> None:
    scanner = StopScanner([stop])
    seen = ""
    for i, character in enumerate(text):
        seen += scanner.push(character)
        if scanner.stopped:
            return
        rest = text[: i + 1].removeprefix(seen)
        assert stop.startswith(rest)
        assert len(rest) < len(stop)


def test_what_comes_after_is_dropped() -> None:
    scanner = StopScanner(["END"])
    assert scanner.push("a END b") == "a "
    assert scanner.push("more") == scanner.finish() == ""


@pytest.mark.parametrize("stop", ["", ["a", ""], [3]])
def test_what_cannot_be_a_stop_string(stop: Any) -> None:
    with pytest.raises(ArgumentError, match="stop"):
        read_stops(stop)


def test_one_several_none() -> None:
    assert read_stops("ab") == ("ab",)
    assert read_stops(["a", "b"]) == ("a", "b")
    assert read_stops(None) == read_stops([]) == ()
