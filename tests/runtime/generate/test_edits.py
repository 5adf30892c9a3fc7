"""Changes to logits: each is its formula, log-probabilities stay the model's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from int8conv.errors import ArgumentError, GenerationError
from int8conv.runtime.generate.edits import EditingSampler, edited
from int8conv.runtime.generate.sampler import Choice, Request, TorchSampler
from int8conv.runtime.generate.sampling import Sampling

LOGITS = torch.tensor([[1.0, 5.0, 4.0, 3.0, 2.0]])
CPU = torch.device("cpu")


def choose(count: int, *, prompt: Sequence[int] = (1,), sampling: Sampling | None = None, **asked: Any) -> list[Choice]:  # fmt: skip
    """The likeliest tokens of the same logits, one after the other."""
    request = Request(prompt, sampling or Sampling(), **({"logprobs": False} | asked))
    sampler = edited(TorchSampler([request], 5), [request], CPU)
    return [sampler.sample(LOGITS, [0]).choice(0) for _ in range(count)]


def tokens(count: int, **asked: Any) -> list[int]:
    return [choice.token for choice in choose(count, **asked)]


def test_nothing_is_changed_where_nobody_asks() -> None:
    request = Request([1], Sampling(temperature=1.0), logprobs=True)
    plain = TorchSampler([request], 5)
    assert edited(plain, [request], CPU) is plain


def test_penalties_are_of_what_was_generated() -> None:
    assert tokens(4, sampling=Sampling(presence_penalty=1.5)) == [1, 2, 1, 1]
    assert tokens(6, sampling=Sampling(frequency_penalty=1.5)) == [1, 2, 1, 3, 2, 1]
    assert tokens(3, sampling=Sampling(presence_penalty=-1.0)) == [1, 1, 1]


def test_a_bias_is_added() -> None:
    assert tokens(2, sampling=Sampling(logit_bias={4: 3.5})) == [4, 4]
    assert tokens(1, sampling=Sampling(logit_bias={1: -math.inf})) == [2]


def test_no_end_before_the_minimum() -> None:
    assert tokens(3, min_new_tokens=2, end_tokens=frozenset({1, 77})) == [2, 2, 1]


def test_a_hook_has_the_last_word() -> None:
    seen: list[list[int]] = []

    def hook(so_far: Sequence[int], logits: Tensor) -> Tensor:
        seen.append(list(so_far))
        return -logits

    assert tokens(2, prompt=[3], processor=hook) == [0, 0]
    assert seen == [[3], [3, 0]]
    with pytest.raises(ArgumentError, match=r"logits_processor: expected a function that returns a tensor \[5\], found NoneType"):  # fmt: skip
        tokens(1, processor=lambda so_far, logits: None)
    with pytest.raises(GenerationError, match="no token is left to choose"):
        tokens(1, processor=lambda so_far, logits: logits - math.inf)


def test_log_probabilities_are_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    own = LOGITS[0].log_softmax(-1).tolist()
    (found,) = choose(1, sampling=Sampling(logit_bias={4: 9.0}), top_logprobs=2)
    assert found.token == 4
    assert found.logprob == pytest.approx(own[4])
    assert [token for token, _ in found.top] == [1, 2]
    assert [value for _, value in found.top] == pytest.approx([own[1], own[2]])
    (all_of_them,) = choose(1, top_logprobs=99)
    assert len(all_of_them.top) == 5


def test_sequences_of_a_batch_do_not_mix() -> None:
    plain = Request([1], Sampling(), logprobs=False)
    other = Request([1], Sampling(logit_bias={0: 9.0}), logprobs=True)
    sampler = edited(TorchSampler([plain, other], 5), [plain, other], CPU)
    assert isinstance(sampler, EditingSampler)
    assert not sampler.ahead
    sampled = sampler.sample(LOGITS.repeat(2, 1), [0, 1])
    assert sampled.tokens.tolist() == [1, 0]
    assert sampled.choice(0).logprob is None
    assert sampled.choice(1).logprob == pytest.approx(LOGITS[0].log_softmax(-1)[0].item())
