"""The tokens of a step, sequence by sequence, on the CPU: each as if it were alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from int8conv.errors import GenerationError
from int8conv.runtime.generate.sampler import Choice, Request, TorchSampler
from int8conv.runtime.generate.sampling import Sampling, next_token, penalised, probabilities

VOCAB = 7
LOGITS = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(0))


def request(*prompt: int, logprobs: bool = False, **options: Any) -> Request:
    return Request(prompt, Sampling(**options), logprobs)


def sampler(*requests: Request) -> TorchSampler:
    return TorchSampler(requests, VOCAB)


def test_the_likeliest_tokens_and_nothing_of_what_is_done() -> None:
    made = sampler(*[request(1)] * 3)
    found = made.sample(LOGITS, [0, 2])
    best = LOGITS.argmax(-1).tolist()
    assert found.choice(0) == Choice(best[0])
    assert found.choice(2) == Choice(best[2])
    assert found.tokens.dtype == torch.int64
    assert found.tokens[[0, 2]].tolist() == [best[0], best[2]]
    assert found.tokens.shape == (3,)
    assert not made.ahead  # its tokens are the host's


def test_logits_of_sequences_that_are_done_may_be_anything() -> None:
    logits = LOGITS.clone()
    logits[1] = float("nan")
    sampler(*[request(1)] * 3).sample(logits, [0, 2])
    with pytest.raises(GenerationError, match="NaN or infinite"):
        sampler(*[request(1)] * 3).sample(logits, [0, 1])


@pytest.mark.parametrize("options", [{}, {"temperature": 0.5, "top_k": 2, "seed": 3}, {"repetition_penalty": 9.0}])  # fmt: skip
def test_log_probabilities_are_the_models_own(options: dict[str, Any]) -> None:
    """Before temperature, penalty and the like; only where they are asked for."""
    found = sampler(request(0, logprobs=True, **options), request(0, **options)).sample(LOGITS[:2], [0, 1])  # fmt: skip
    first, second = found.choice(0), found.choice(1)
    expected = LOGITS[0].double().log_softmax(-1)[first.token]
    assert first.logprob == pytest.approx(float(expected), abs=1e-6)
    assert second.logprob is None


def test_each_sequence_draws_as_if_it_were_alone() -> None:
    requests = [request(1, temperature=1.0, seed=seed) for seed in (5, 6, 5)]
    together = sampler(*requests)
    found = [together.sample(LOGITS[:1].expand(3, -1), range(3)).tokens for _ in range(40)]
    for i, each in enumerate(requests):
        generator = each.sampling.generator()
        alone = [next_token(LOGITS[0], each.sampling, generator) for _ in range(40)]
        assert [int(tokens[i]) for tokens in found] == alone
    assert [tokens[0] for tokens in found] == [tokens[2] for tokens in found]
    assert [tokens[0] for tokens in found] != [tokens[1] for tokens in found]


def test_a_sequence_that_waits_draws_nothing() -> None:
    made, alone = (sampler(*[request(1, temperature=1.0, seed=5)] * 2) for _ in range(2))
    flat = torch.zeros(2, VOCAB)
    for _ in range(5):
        made.sample(flat, [0])
    assert [made.sample(flat, [1]).choice(1) for _ in range(9)] == [
        alone.sample(flat, [1]).choice(1) for _ in range(9)
    ]


def seen(*tokens: int) -> Tensor:
    return torch.zeros(VOCAB, dtype=torch.bool).index_fill(0, torch.tensor(tokens), True)


def test_what_a_sequence_has_had_is_penalised_and_nothing_of_another() -> None:
    """The prompt, then each token that was chosen: with a penalty this high, one after the other."""
    logits = torch.arange(1.0, VOCAB + 1).expand(2, -1)
    made = sampler(request(6, 4, repetition_penalty=100.0), request(5, 5, repetition_penalty=100.0))
    steps = [made.sample(logits, [0, 1]).tokens.tolist() for _ in range(4)]
    assert [first for first, _ in steps] == [5, 3, 2, 1]
    assert [second for _, second in steps] == [6, 4, 3, 2]


def test_the_distribution_is_that_of_the_penalised_logits() -> None:
    options = {"temperature": 0.8, "repetition_penalty": 1.5, "top_k": 5}
    counts = torch.zeros(VOCAB)
    made = sampler(*[request(1, 3, seed=seed, **options) for seed in range(600)])
    for token in made.sample(LOGITS[:1].expand(600, -1), range(600)).tokens:
        counts[token] += 1
    expected = 600 * probabilities(penalised(LOGITS[0], 1.5, seen(1, 3)), Sampling(**options))
    used = expected > 0
    assert counts[~used].sum() == 0
    assert (
        (counts - expected)[used] ** 2 / expected[used]
    ).sum() < 18.5  # 4 degrees of freedom: 0.1 %


def test_no_sequences() -> None:
    assert sampler().sample(torch.empty(0, VOCAB), []).tokens.shape == (0,)
