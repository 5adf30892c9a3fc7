"""Tokens chosen on the device, in Triton's interpreter: the CPU's where nothing is drawn, and one step ahead of the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from int8conv.errors import GenerationError
from int8conv.runtime.backends.gpu.cache import DeviceCache
from int8conv.runtime.backends.gpu.sampler import DeviceSampler
from int8conv.runtime.generate.batch import Batch
from int8conv.runtime.generate.generation import Continuation, continue_all
from int8conv.runtime.generate.lookup import Pace, with_guesses
from int8conv.runtime.generate.sampler import Request, Sampler, TorchSampler
from int8conv.runtime.generate.sampling import Sampling
from int8conv.runtime.generate.session import Session
from int8conv.runtime.models.architecture import read_architecture

from ....checkpoints import LLAMA
from ...reference import NoText
from .rehearsal import CPU, without_the_host

VOCAB = 96
Make = Callable[[Sequence[Request]], Sampler]
PICKERS: dict[str, Make] = {
    "on the host": lambda requests: TorchSampler(requests, VOCAB),
    "on the device": lambda requests: DeviceSampler(requests, VOCAB, CPU),
}


def request(sampling: Sampling, prompt: Sequence[int] = (5,), logprobs: bool = False) -> Request:
    return Request(list(prompt), sampling, logprobs)


def random_logits(batch: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(batch, VOCAB, generator=torch.Generator().manual_seed(seed))


def run(sampler: Sampler, steps: int, batch: int) -> list[list[tuple[int, float | None]]]:
    """What each sequence gets, step by step."""
    found = []
    for step in range(steps):
        sampled = sampler.sample(random_logits(batch, step), range(batch))
        choices = [sampled.choice(i) for i in range(batch)]
        assert sampled.tokens.tolist() == [each.token for each in choices]
        found.append([(each.token, each.logprob) for each in choices])
    return found


def test_greedy_penalty_and_logprobs_are_the_hosts() -> None:
    requests = [
        request(Sampling(), logprobs=True),
        request(Sampling(repetition_penalty=3.0), [1, 2, 3], logprobs=True),
        request(Sampling(1e-40, seed=1), logprobs=True),
    ]
    found, expected = (run(make(requests), 6, 3) for make in PICKERS.values())
    assert [[t for t, _ in step] for step in found] == [[t for t, _ in step] for step in expected]
    for one, other in zip(found, expected, strict=True):
        assert [p for _, p in one] == pytest.approx([p for _, p in other], abs=1e-5)


def test_the_penalty_is_on_what_was_chosen() -> None:
    """The same logits at each step: a penalty this large never takes a token twice."""
    sampler = DeviceSampler([request(Sampling(repetition_penalty=1e6), [7])], VOCAB, CPU)
    logits = random_logits(1).abs() + 1
    seen = [sampler.sample(logits, [0]).choice(0).token for _ in range(20)]
    assert len({7, *seen}) == 21


def test_nothing_waits_for_the_host() -> None:
    sampling = Sampling(0.8, top_k=20, top_p=0.9, min_p=0.05, repetition_penalty=1.2)
    sampler = DeviceSampler([request(sampling, logprobs=True)] * 2, VOCAB, CPU)
    with without_the_host():
        sampler.sample(random_logits(2), [0, 1])


def test_draws_depend_on_seed_and_position_alone() -> None:
    samplings = [Sampling(1.5, seed=seed) for seed in (3, 4, 3)]
    together = DeviceSampler([request(each) for each in samplings], VOCAB, CPU)
    logits = random_logits(1)
    found = [together.sample(logits.expand(3, -1), range(3)).tokens.tolist() for _ in range(8)]
    alone = DeviceSampler([request(samplings[0])], VOCAB, CPU)
    assert [alone.sample(logits, [0]).choice(0).token for _ in range(8)] == [each[0] for each in found]  # fmt: skip
    columns = list(zip(*found, strict=True))
    assert columns[0] == columns[2] != columns[1]
    assert len(set(columns[0])) > 2


def test_options_select() -> None:
    logits = torch.arange(VOCAB).float()[None] / 50
    for sampling, least in (
        (Sampling(1.0, top_k=3, seed=1), VOCAB - 3),
        (Sampling(1.0, min_p=0.9, seed=1), VOCAB - 6),
        (Sampling(1.0, top_p=0.05, seed=1), VOCAB - 4),
    ):
        sampler = DeviceSampler([request(sampling)], VOCAB, CPU)
        drawn = {sampler.sample(logits, [0]).choice(0).token for _ in range(40)}
        assert min(drawn) >= least
        assert len(drawn) > 1


@pytest.mark.parametrize("make", PICKERS.values(), ids=PICKERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, in the interpreter
def test_logits_that_are_not_numbers(make: Make, value: float) -> None:
    logits = random_logits(2)
    logits[1, 3] = value
    sampler = make([request(Sampling()), request(Sampling())])
    assert make([request(Sampling())] * 2).sample(logits, [0]).choice(0).token == int(logits[0].argmax())  # fmt: skip
    with pytest.raises(GenerationError, match="NaN or infinite"):
        sampler.sample(logits, [0, 1]).choice(1)


class Chain:
    """A decoder in whose place the likeliest token follows from the last one alone."""

    dtype = kv_cache = torch.float32
    device = CPU

    def __init__(self, make: Make) -> None:
        self.config = read_architecture(LLAMA, ()).config
        self.backend: Any = self
        self.steps_taken = 0
        self._make = make
        self._table = random_logits(VOCAB, 7)

    def sampler(self, requests: Sequence[Request], vocab: int) -> Sampler:
        return self._make(requests)

    def cache(self, *, batch: int, capacity: int) -> DeviceCache:
        return DeviceCache(self.config, batch=batch, capacity=capacity, dtype=self.dtype, device=CPU)  # fmt: skip

    def steps(self, decoder: Any, cache: DeviceCache) -> Callable[[Tensor], Tensor]:
        def step(tokens: Tensor) -> Tensor:
            self.steps_taken += 1
            return self.forward(tokens, cache, last_only=True)

        return step

    def forward(self, tokens: Tensor, cache: DeviceCache, last_only: bool = False) -> Tensor:
        assert (cache.lengths + tokens.shape[1] <= cache.capacity).all()
        cache.advance(tokens.shape[1])
        return self._table[tokens[:, -1:] if last_only else tokens]

    def text(self, prompt: Sequence[int], count: int) -> list[int]:
        ids = [*prompt]
        for _ in range(count):
            ids.append(int(self._table[ids[-1]].argmax()))
        return ids[len(prompt) :]


def continuation(prompt: Sequence[int], limit: int, ends: frozenset[int] = frozenset()) -> Continuation:  # fmt: skip
    return Continuation(prompt, limit, Sampling(), end_tokens=ends, detokenizer=NoText())


@pytest.mark.parametrize("make", PICKERS.values(), ids=PICKERS)
def test_sequences_end_one_by_one(make: Make) -> None:
    """At the limit, at an end token, or before the start; nobody steps past its place in the cache (``Chain.forward``)."""
    decoder: Any = Chain(make)
    prompts, limits = [[3, 4], [5], [6, 7, 8], [9]], [4, 9, 0, 1]
    ends = frozenset(decoder.text(prompts[1], 3)[2:])
    assert not ends & {*decoder.text(prompts[0], 4)[:3]}
    batch = [continuation(p, n, ends) for p, n in zip(prompts, limits, strict=True)]
    cache = decoder.cache(batch=4, capacity=10)
    continue_all(decoder, batch, cache)
    counts = [4, decoder.text(prompts[1], 9).index(*ends) + 1, 0, 1]
    assert [each.token_ids for each in batch] == [
        decoder.text(prompt, count) for prompt, count in zip(prompts, counts, strict=True)
    ]
    assert decoder.steps_taken == 3


@pytest.mark.parametrize("make", PICKERS.values(), ids=PICKERS)
def test_a_session_goes_on_behind_an_end_token(make: Make) -> None:
    decoder: Any = Chain(make)
    session, prompt = Session(decoder), [3, 4, 5]
    end = decoder.text(prompt, 3)[2]
    first = continuation(prompt, 20, frozenset([end]))
    continue_all(decoder, [first], session.cache_for(prompt, 20))
    session.keep(first.prompt + first.token_ids)
    assert first.token_ids == decoder.text(prompt, 20)[: len(first.token_ids)]
    assert first.token_ids[-1] == end
    whole = prompt + first.token_ids
    assert session.token_ids == whole[: len(session.token_ids)]
    assert len(session.token_ids) >= len(whole) - 1
    second = continuation([*whole, 8], 4)
    cache = session.cache_for(second.prompt, 4)
    assert cache.length == len(session.token_ids)
    continue_all(decoder, [second], cache)
    assert second.token_ids == decoder.text([8], 4)


@pytest.mark.parametrize("make", PICKERS.values(), ids=PICKERS)
def test_sequences_join_a_batch_and_leave_it(make: Make) -> None:
    """The cache grows on the way, and views of fewer sequences step."""
    decoder: Any = Chain(make)
    batch = Batch(decoder, 3, lambda positions, size: nullcontext())
    asked = [continuation([3 + i] * (1 + i % 4), 2 + 5 * (i % 3)) for i in range(8)]
    for each in asked:
        batch.add(each)
        batch.step()
    while not batch.is_idle:
        batch.step()
    assert [each.token_ids for each in asked] == [
        decoder.text(each.prompt, each.limit) for each in asked
    ]


@pytest.mark.parametrize("make", PICKERS.values(), ids=PICKERS)
def test_guessed_tokens_are_checked_on_the_device(make: Make) -> None:
    """A text that comes back to where it was; the cache never holds a wrong guess."""
    decoder: Any = Chain(make)
    first = decoder.text([3], VOCAB)
    prompt = [3, *first[:-1], 3]
    expected = decoder.text(prompt, 30)
    each, cache = continuation(prompt, 30), decoder.cache(batch=1, capacity=len(prompt) + 30)
    ticks = iter(range(1000))
    passes = with_guesses(decoder, each, cache, decoder.steps(decoder, cache), "w8a16", Pace(lambda: next(ticks)))  # fmt: skip
    counts = [cache.length - len(prompt) - len(each.token_ids) for _ in passes]
    assert each.token_ids == expected
    assert len(counts) < 20
    assert set(counts) == {-1}
