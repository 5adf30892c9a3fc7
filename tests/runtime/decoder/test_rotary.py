"""Frequencies of every scaling against their formulas in Python's floats, and the rotation against complex numbers."""

from __future__ import annotations

import cmath
import math
from dataclasses import replace

import pytest
import torch

from int8conv.runtime.decoder.rotary import Rotary, rotate
from int8conv.runtime.models.config import Rope

PLAIN = [10000 ** (-i / 8) for i in range(0, 8, 2)]
"""Radians per position of the four pairs of a head of 8 channels."""
SHORT, LONG = (1.0, 1.5, 2.0, 3.0), (2.0, 4.0, 8.0, 16.0)
ROPES = {
    "default": Rope(10000.0),
    "linear": Rope(10000.0, "linear", factor=4.0),
    "dynamic": Rope(10000.0, "dynamic", factor=2.0, original_positions=16),
    "llama3": Rope(10000.0, "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_positions=64),
    "yarn": Rope(10000.0, "yarn", factor=4.0, original_positions=64, beta_fast=32.0, beta_slow=1.0, magnitude=1.25),
    "longrope": Rope(10000.0, "longrope", original_positions=16, short_factors=SHORT, long_factors=LONG),
}  # fmt: skip


def frequencies(kind: str, length: int = 1) -> list[float]:
    found: list[float] = Rotary(ROPES[kind], 8).frequencies(length).tolist()
    return found


def test_plain_and_linear() -> None:
    assert frequencies("default") == pytest.approx(PLAIN)
    assert frequencies("linear") == pytest.approx([f / 4 for f in PLAIN])


def test_dynamic_has_a_larger_base_in_longer_sequences() -> None:
    """The base times ``(factor length / original - (factor - 1)) ** (d / (d - 2))``; 3 at twice the length."""
    for length in (1, 15, 16):
        assert frequencies("dynamic", length) == pytest.approx(PLAIN)
    base = 10000 * 3 ** (8 / 6)
    assert frequencies("dynamic", 32) == pytest.approx([base ** (-i / 8) for i in range(0, 8, 2)])


def test_llama3_divides_low_frequencies_and_leaves_high_ones() -> None:
    """Turns within the original context: 10.2 stay; 1.02 is near 1, the low end; 0.1 and 0.01 are below."""
    found = frequencies("llama3")
    assert found[0] == pytest.approx(PLAIN[0])
    turns = 64 * PLAIN[1] / (2 * math.pi)
    kept = (turns - 1) / (4 - 1)
    assert 0 < kept < 1
    assert found[1] == pytest.approx(PLAIN[1] / 8 * (1 - kept) + PLAIN[1] * kept)
    assert found[2:] == pytest.approx([f / 8 for f in PLAIN[2:]])


def test_yarn_goes_from_plain_to_stretched() -> None:
    """The pair that turns once within 64 positions is 1.0: the ramp goes from pair 0 to pair 2."""
    pair = 8 * math.log(64 / (2 * math.pi)) / (2 * math.log(10000))
    assert math.ceil(pair) == 2
    ramp = [0.0, 0.5, 1.0, 1.0]
    expected = [f * (1 - r) + f / 4 * r for f, r in zip(PLAIN, ramp, strict=True)]
    assert frequencies("yarn") == pytest.approx(expected)


def test_longrope_has_other_factors_beyond_the_original_context() -> None:
    assert frequencies("longrope", 16) == pytest.approx([f / s for f, s in zip(PLAIN, SHORT, strict=True)])  # fmt: skip
    assert frequencies("longrope", 17) == pytest.approx([f / s for f, s in zip(PLAIN, LONG, strict=True)])  # fmt: skip


@pytest.mark.parametrize("kind", ROPES)
def test_frequencies_of_each_step_are_those_of_a_sequence_that_ends_there(kind: str) -> None:
    rotary = Rotary(ROPES[kind], 8)
    steps = rotary.step_frequencies(40)
    assert rotary.grows == (kind in ("dynamic", "longrope"))
    assert steps.shape == ((40, 4) if rotary.grows else (4,))
    for position, row in enumerate(steps.expand(40, 4)):
        torch.testing.assert_close(row, rotary.frequencies(position + 1))
    assert len(rotary.step_frequencies(5).expand(5, 4)) == 5


@pytest.mark.parametrize("kind", ROPES)
def test_tables_are_cos_and_sin_of_the_angles(kind: str) -> None:
    """Of the longest position's sequence, times the magnitude; pairs are halves apart, or next to each other."""
    rope = ROPES[kind]
    positions = torch.tensor([[0, 3, 20], [5, 1, 2]])
    angles = positions[..., None].double() * torch.tensor(frequencies(kind, 21)).double()
    for interleaved in (False, True):
        cos, sin = Rotary(replace(rope, interleaved=interleaved), 8).tables(
            positions, torch.float64
        )
        assert cos.shape == sin.shape == (2, 3, 8)
        first = (
            (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(0, 4), slice(4, 8))
        )
        for part in first:
            torch.testing.assert_close(
                cos[..., part], angles.cos() * rope.magnitude, rtol=0, atol=5e-6
            )
            torch.testing.assert_close(
                sin[..., part], angles.sin() * rope.magnitude, rtol=0, atol=5e-6
            )
    assert Rotary(rope, 8).tables(positions, torch.float16)[0].dtype == torch.float16


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_a_pair_turns_as_a_complex_number(interleaved: bool, fraction: float) -> None:
    """Channels outside the fraction stay as they are."""
    rotary = Rotary(Rope(10000.0, rotary_fraction=fraction, interleaved=interleaved), 16)
    size = rotary.size
    assert size == int(16 * fraction)
    x = torch.randn(2, 3, 4, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    positions = torch.tensor([0, 7, 1, 30])
    found = rotate(x, rotary.tables(positions, torch.float64), interleaved)
    torch.testing.assert_close(found[..., size:], x[..., size:], rtol=0, atol=0)
    for pair in range(size // 2):
        i, j = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + size // 2)
        for t, position in enumerate(positions.tolist()):
            turn = cmath.exp(1j * position * 10000 ** (-2 * pair / size))
            expected = torch.complex(x[:, :, t, i], x[:, :, t, j]) * turn
            torch.testing.assert_close(found[:, :, t, i], expected.real, rtol=0, atol=1e-5)
            torch.testing.assert_close(found[:, :, t, j], expected.imag, rtol=0, atol=1e-5)


def test_scores_depend_on_the_distance_alone() -> None:
    rotary = Rotary(Rope(10000.0), 16)
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(2))

    def score(at: int, behind: int) -> float:
        turned = [
            rotate(x, rotary.tables(torch.tensor([p]), torch.float32))
            for x, p in ((q, at), (k, at - behind))
        ]
        return float((turned[0] * turned[1]).sum())

    assert score(50, 7) == pytest.approx(score(9, 7), abs=1e-4)
    assert score(50, 7) != pytest.approx(score(50, 8), abs=1e-2)
