"""Figures of statistics: the median and largest magnitudes, how many channels reach 6.0, and the default rule's choice."""

from __future__ import annotations

import json

import numpy as np

from int8conv.convert.outliers.rule import Choosing, choose_all
from int8conv.convert.outliers.summary import summarize_stats
from int8conv.formats.int8.stats import InputStats, Stats

TOKENS = 100


def seen(absmax: list[float], large: dict[int, int], kurtosis: float = 3.0) -> InputStats:
    """An input of so many channels, each of mean square 1."""
    count, zeros = len(absmax), np.zeros(len(absmax))
    positions = np.zeros(count, np.int64)
    for channel, times in large.items():
        positions[channel] = times
    return InputStats(
        np.array(absmax, np.float32), positions, np.stack([zeros + TOKENS, zeros]),
        np.stack([zeros + kurtosis * TOKENS, zeros]), np.ones(count, np.float32),
    )  # fmt: skip


def make() -> Stats:
    normed = [1.0] * 62 + [5.99, 6.0]
    inputs = {
        "a.q": seen(normed, {63: 7, 62: 7}),
        "a.down": seen([0.5, 2.0, 7.0, 9.0], {2: 1, 3: 1}, kurtosis=40.0),
        "a.o": seen([0.0] * 20, {}),
    }
    linears = {"a.q": ("a.q", "a.k"), "a.down": ("a.down",), "a.o": ("a.o",)}
    return Stats("tiny", "f" * 32, (("a" * 32, 60), (None, 40)), 20, linears, ("a.q",), inputs)


def test_each_input_by_its_first_linear() -> None:
    found = summarize_stats(make()).inputs
    assert list(found) == ["a.q", "a.down", "a.o"]
    q, down, zero = found.values()
    assert (q.channels, q.median_absmax, q.absmax, q.channels_from_6) == (64, 1.0, 6.0, 1)
    assert (down.channels, down.median_absmax, down.absmax, down.channels_from_6) == (4, 4.5, 9.0, 2)  # fmt: skip
    assert (zero.channels, zero.median_absmax, zero.absmax, zero.channels_from_6) == (20, 0.0, 0.0, 0)  # fmt: skip


def test_columns_and_thresholds_are_the_default_rules() -> None:
    """16 columns at least where there are so many, 16 bits for what is heavy-tailed, nothing for what is zero."""
    stats = make()
    found = summarize_stats(stats).inputs
    assert [(each.columns, each.threshold) for each in found.values()] == [
        (16, 6.01), (0, 0.0), (0, None),
    ]  # fmt: skip
    choices = choose_all(stats, Choosing())
    assert {path: len(choice.columns) for path, choice in choices.items()} == {
        path: each.columns for path, each in found.items()
    }


def test_dimensions_are_those_of_inputs_behind_a_norm() -> None:
    """7 of 100 positions in the one such input; channels 2 and 3 of the other are not of the hidden state."""
    summary = summarize_stats(make())
    assert summary.systematic_dimensions == (62, 63)
    assert all(type(each) is int for each in summary.systematic_dimensions)


def test_json() -> None:
    value = json.loads(json.dumps(summarize_stats(make()).to_json()))
    assert {key: value[key] for key in value if key != "inputs"} == {
        "source": "tiny", "fingerprint": "f" * 32, "tokens": 100, "context": 20,
        "systematic_dimensions": [62, 63],
    }  # fmt: skip
    assert value["inputs"]["a.down"] == {
        "channels": 4, "median_absmax": 4.5, "absmax": 9.0, "channels_from_6": 2, "columns": 0, "threshold": 0.0,
    }  # fmt: skip
    assert value["inputs"]["a.o"]["threshold"] is None
