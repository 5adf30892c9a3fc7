"""The text of errors: one line that a terminal only shows."""

from __future__ import annotations

import pytest

from int8conv.errors import Int8convError, ShapeError, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("model.layers.0.weight", "model.layers.0.weight"),
        ("Größe, größer: 権重 😀", "Größe, größer: 権重 😀"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b2J", r"\x9b2J"),
        ("a\rb\nc\td\x7f", r"a\rb\nc\td\x7f"),
        ("safe\u202egnp.exe", r"safe\u202egnp.exe"),
        ("\u2066x\u2069\u200f\u200b", r"\u2066x\u2069\u200f\u200b"),
        ("\u2028new line", r"\u2028new line"),
        ("not UTF-8: \udcff", r"not UTF-8: \udcff"),
        ("", ""),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_an_error_is_a_line_without_escapes_in_any_of_its_parts() -> None:
    evil = "x\x1b[2J\u202e\0\udc80"
    error = ShapeError(evil, file=evil, tensor=evil, expected=evil, found=evil, hint=evil)
    assert str(error).isprintable()
    assert str(error).count(r"x\x1b[2J\u202e\x00\udc80") == 6
    assert error.tensor == evil


def test_long_values_are_cut() -> None:
    long = "x" * 10**6
    error = Int8convError(long, file=long, tensor=long, expected=long, found=long, hint=long)
    assert len(str(error)) < 5000
