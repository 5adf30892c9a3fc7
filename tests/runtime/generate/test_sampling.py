"""Drawing the next token: the distribution that each option leaves, and repeatability."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers.generation import logits_process as theirs

from int8conv.errors import ArgumentError, GenerationError
from int8conv.runtime.generate.sampling import Sampling, next_token, penalised, probabilities

LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0, 2.5])


def test_temperature_zero_takes_the_most_likely() -> None:
    assert next_token(LOGITS, Sampling(), torch.Generator()) == 1


def test_temperature_divides_the_logits() -> None:
    expected = torch.exp(LOGITS / 0.7) / torch.exp(LOGITS / 0.7).sum()
    torch.testing.assert_close(probabilities(LOGITS, Sampling(0.7)), expected)


@pytest.mark.parametrize(
    ("top_k", "kept"),
    [(1, {1}), (3, {1, 4, 2}), (5, set(range(5))), (99, set(range(5))), (0, set(range(5)))],
)
def test_top_k_keeps_the_most_likely(top_k: int, kept: set[int]) -> None:
    p = probabilities(LOGITS, Sampling(1.0, top_k=top_k))
    assert set(p.nonzero().flatten().tolist()) == kept
    assert p.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.5, 0.7, 0.9, 0.97, 1.0])
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float) -> None:
    full = LOGITS.softmax(-1)
    kept = probabilities(LOGITS, Sampling(1.0, top_p=top_p)) > 0
    assert full[kept].sum() >= top_p - 1e-6
    smallest = full[kept].min()
    assert full[kept].sum() - smallest < top_p
    assert (full[~kept] <= smallest).all()


def test_draws_follow_the_distribution() -> None:
    sampling = Sampling(1.0, top_k=4, seed=1)
    expected = probabilities(LOGITS, sampling)
    generator = sampling.generator()
    draws = torch.tensor([next_token(LOGITS, sampling, generator) for _ in range(4000)])
    counts = torch.bincount(draws, minlength=5)
    used = expected > 0
    chi2 = ((counts - 4000 * expected)[used] ** 2 / (4000 * expected[used])).sum()
    assert counts[~used].sum() == 0
    assert chi2 < 16.3  # 3 degrees of freedom: 0.1 %


def test_a_seed_repeats_and_another_differs() -> None:
    def draw(seed: int) -> list[int]:
        sampling = Sampling(1.0, seed=seed)
        generator = sampling.generator()
        return [next_token(LOGITS, sampling, generator) for _ in range(50)]

    assert draw(7) == draw(7) != draw(8)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("inf")},
        {"seed": 2**70},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(options))):
        Sampling(**options)


def test_a_tiny_temperature_is_greedy() -> None:
    assert next_token(LOGITS, Sampling(1e-40, seed=0), torch.Generator()) == 1


@pytest.mark.parametrize("min_p", [0.0, 0.1, 0.3, 0.6, 1.0])
def test_min_p_keeps_what_is_near_the_likeliest(min_p: float) -> None:
    full = LOGITS.softmax(-1)
    kept = probabilities(LOGITS, Sampling(1.0, min_p=min_p)) > 0
    assert torch.equal(kept, full >= min_p * full.max())


SEEN = [3, 17, 17, 40, 99]
OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0.6},
    {"temperature": 1.7, "top_k": 20},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.3, "min_p": 0.05},
    {"temperature": 1.0, "repetition_penalty": 1.3},
    {"temperature": 1.0, "repetition_penalty": 0.8, "top_k": 5},
    {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "min_p": 0.02, "repetition_penalty": 1.1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_probabilities_are_those_of_transformers(options: dict[str, Any]) -> None:
    """Each of its processors, in the order of its ``generate``, then a softmax: the same tokens, the same probabilities."""
    logits = 3 * torch.randn(20, 100, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([SEEN])
    chain: list[Any] = []
    if "repetition_penalty" in options:
        chain.append(theirs.RepetitionPenaltyLogitsProcessor(options["repetition_penalty"]))
    chain.append(theirs.TemperatureLogitsWarper(options["temperature"]))
    kinds = {"top_k": theirs.TopKLogitsWarper, "top_p": theirs.TopPLogitsWarper, "min_p": theirs.MinPLogitsWarper}  # fmt: skip
    chain += [kind(options[name]) for name, kind in kinds.items() if name in options]
    seen = torch.zeros(100, dtype=torch.bool)
    seen[SEEN] = True
    sampling = Sampling(**options)
    for row in logits:
        scores = row[None]
        for process in chain:
            scores = process(ids, scores)
        expected = scores.softmax(-1)[0]
        found = probabilities(penalised(row, sampling.repetition_penalty, seen), sampling)
        assert torch.equal(found > 0, expected > 0)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_the_penalty_counts_without_a_temperature() -> None:
    seen = torch.tensor([False, True, False, False, False])
    penalty = Sampling(repetition_penalty=1.5)
    assert next_token(LOGITS, penalty, torch.Generator(), seen) == 4
    assert next_token(-LOGITS, penalty, torch.Generator(), seen) == 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers(bad: float, temperature: float) -> None:
    logits = LOGITS.clone()
    logits[2] = bad
    with pytest.raises(GenerationError, match="NaN or infinite"):
        next_token(logits, Sampling(temperature), torch.Generator())


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-45, 1e-38, 1e-31])
def test_the_smallest_temperatures_leave_the_likeliest(temperature: float) -> None:
    logits = torch.tensor([1.0, 3.0, -torch.inf, 2.999999, -3e38])
    for options in ({}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.5}):
        found = probabilities(logits, Sampling(temperature, **options))  # type: ignore[arg-type]
        assert found.tolist() == [0.0, 1.0, 0.0, 0.0, 0.0]
    two = torch.tensor([2.0, 1.0, 2.0])
    assert probabilities(two, Sampling(temperature)).tolist() == [0.5, 0.0, 0.5]


@pytest.mark.parametrize("temperature", [1e31, 1e39, 1e300, 1.7e308])
def test_the_largest_temperatures_make_all_alike(temperature: float) -> None:
    found = probabilities(torch.tensor([1.0, -torch.inf, 9.0, -9.0]), Sampling(temperature))
    torch.testing.assert_close(found, torch.tensor([1, 0, 1, 1]).double() / 3)


@pytest.mark.parametrize("top_p", [5e-324, 1e-300, 1e-45, 1e-38])
def test_the_smallest_top_p_keeps_the_likeliest(top_p: float) -> None:
    assert (probabilities(LOGITS, Sampling(1.0, top_p=top_p)) > 0).nonzero().tolist() == [[1]]
    assert next_token(LOGITS, Sampling(1.0, top_p=top_p, seed=0), torch.Generator()) == 1


@pytest.mark.parametrize("penalty", [1e-308, 1e-300, 1e-40, 1e40, 1e300, 1.7e308])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 1e-300])
def test_extreme_penalties(penalty: float, temperature: float) -> None:
    """What has occurred is infinitely less likely, or more; among such, the order stays."""
    generator = torch.Generator()
    sampling = Sampling(temperature, repetition_penalty=penalty)
    one = torch.tensor([2.0, 1.0, -1.0]), torch.tensor([True, False, False])
    assert next_token(one[0], sampling, generator, one[1]) in (
        (0, 1, 2) if temperature == 1 else (1,) if penalty > 1 else (0,)
    )
    every = torch.ones(3, dtype=torch.bool)
    assert next_token(torch.tensor([-2.0, -1.0, -3.0]), replace(sampling, temperature=0.0), generator, every) == 1  # fmt: skip
    assert next_token(torch.tensor([-2.0, -1.0, -3.0]), sampling, generator, every) in (0, 1, 2)
