"""Bytes of weights by what they are, counted by hand; whole folders are in test_footprint."""

from __future__ import annotations

from dataclasses import replace

from int8conv.runtime.measure.footprint_weights import (
    estimated_weights,
    loaded_weights,
    parameter_count,
    unread_rows,
)
from int8conv.runtime.models.architecture import read_architecture

from ...checkpoints import LLAMA, OPT

FORM = read_architecture(LLAMA, ())
Q, KV, FFN = 64 * 64, 32 * 64, 160 * 64
LINEARS = 2 * (2 * Q + 2 * KV + 3 * FFN)
"""Elements of two layers."""


def test_a_source_as_it_is_loaded() -> None:
    found = loaded_weights(FORM, 4)
    assert found["attention (16/32 bit)"] + found["FFN (16/32 bit)"] == 4 * LINEARS
    assert found["norms"] == 4 * 5 * 64
    assert found["embeddings"] == found["head"] == 4 * 96 * 64
    assert found["biases"] == 0
    assert sum(found.values()) == 4 * parameter_count(FORM)


def test_biases_count() -> None:
    """Of a small OPT: of all linears, and of norms."""
    form = read_architecture(OPT, ())
    expected = 2 * (4 * 64 + 160 + 64) + (2 * 2 + 1) * 64
    assert loaded_weights(form, 2)["biases"] == estimated_weights(form)["biases"] == 2 * expected


def test_as_convert_would_make_them() -> None:
    """Codes of a byte, a scale of four per row, and 16 columns per linear with an index of four each."""
    found = estimated_weights(FORM)
    rows = 2 * (64 + 64 + 2 * 32 + 2 * 160 + 64)
    assert found["int8 weights"] == LINEARS
    assert found["row scales"] == 4 * rows
    assert found["outlier columns"] == 16 * (4 * 2 * 7 + 2 * rows)
    assert found["norms"] == 2 * 5 * 64


def test_rows_that_no_token_reaches_stay_in_the_file() -> None:
    """A token brings in 64 KiB: of 1 MiB a sixteenth."""
    embed = next(m for m in FORM.modules if m.role == "embed")
    table = replace(embed, shape=(1024, 512))
    nbytes = 1024 * 1024
    assert unread_rows(table, 0, nbytes) == nbytes
    assert unread_rows(table, 1, nbytes) == nbytes * 15 // 16
    assert unread_rows(table, 2, nbytes) == int(nbytes * (15 / 16) ** 2)
    assert unread_rows(table, 5, 1 << 15) == 0  # smaller than what one token brings in


def test_positions_are_read_from_the_first_on() -> None:
    embed = next(m for m in FORM.modules if m.role == "embed")
    table = replace(embed, role="positions", shape=(1024, 512))
    nbytes = 1024 * 1024
    assert unread_rows(table, 0, nbytes) == nbytes * 15 // 16
    assert unread_rows(table, 512, nbytes) == nbytes * 7 // 16
    assert unread_rows(table, 1024, nbytes) == 0
