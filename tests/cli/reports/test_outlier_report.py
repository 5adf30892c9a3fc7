"""``--report-outliers``: which inputs are shown, and the last line."""

from __future__ import annotations

import pytest

from int8conv.cli.reports.outlier_report import SHOWN, show_fallback
from int8conv.runtime.measure.fallback import FallbackReport, InputFallback


def used(name: str, tokens: int, fallback_tokens: int, **channels: int) -> InputFallback:
    """An input; channels by ``c`` and their number."""
    counts = {int(name[1:]): count for name, count in channels.items()}
    return InputFallback(name, tokens, fallback_tokens, sum(counts.values()), counts)


def shown(capsys: pytest.CaptureFixture[str], *inputs: InputFallback, err: bool = False) -> list[str]:  # fmt: skip
    show_fallback(FallbackReport(inputs), err=err)
    out, error = capsys.readouterr()
    assert (out if err else error) == ""
    return (error if err else out).splitlines()


@pytest.mark.parametrize("err", [False, True])
def test_inputs_with_most_values_come_first(capsys: pytest.CaptureFixture[str], err: bool) -> None:
    """Their share of tokens, and the four channels with most."""
    few = used("layers.0.q", 64, 1, c5=1)
    many = used("layers.1.q", 64, 16, c9=900, c1=80, c2=15, c3=4, c4=1)
    lines = shown(capsys, few, used("layers.2.q", 64, 0), many, err=err)
    assert [line.split() for line in lines] == [
        ["input", "values", "of", "tokens", "channel:values"],
        lines[1].split(),
        ["layers.1.q", "1000", "25.00%", "9:900", "1:80", "2:15", "3:4"],
        ["layers.0.q", "1", "1.56%", "5:1"],
        [
            "outlier",
            "fallback:",
            "1,001",
            "values",
            "of",
            "64",
            "tokens,",
            "at",
            "2",
            "of",
            "3",
            "inputs",
        ],
    ]
    assert set(lines[1]) == {"-", " "}


def test_no_more_than_ten_are_shown_and_all_are_counted(capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    inputs = [used(f"layers.{i:02}", 2000, 1, c1=i + 1) for i in range(12)]
    lines = shown(capsys, *inputs)
    assert SHOWN == 10
    assert [line.split()[0] for line in lines[2:-1]] == [f"layers.{i:02}" for i in range(11, 1, -1)]
    assert lines[-1] == "outlier fallback: 78 values of 2,000 tokens, at 12 of 12 inputs"


def test_nothing_was_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, used("a", 7, 0), used("b", 9, 0)) == [
        "outlier fallback: 0 values of 9 tokens, at 0 of 2 inputs"
    ]


@pytest.mark.parametrize("inputs", [(), (used("a", 0, 0),)])
def test_no_tokens(capsys: pytest.CaptureFixture[str], inputs: tuple[InputFallback, ...]) -> None:
    (line,) = shown(capsys, *inputs)
    assert line.startswith("outlier fallback: not used")
