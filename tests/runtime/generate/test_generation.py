"""Sequences that go on together and end at different times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import int8conv
from benchmarks.streamed_text import byte_fallback
from int8conv.runtime.decoder.cache import Cache
from int8conv.runtime.decoder.decoder import Decoder
from int8conv.runtime.generate.generation import Continuation
from int8conv.runtime.generate.sampler import Choice
from int8conv.runtime.generate.sampling import Sampling
from int8conv.runtime.text.detokenizer import Detokenizer


@pytest.mark.parametrize("folder", ["example", "example_int8"])
def test_a_sequence_that_ends_at_the_end_of_the_context_lets_the_others_go_on(
    folder: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first ends with its 24th token, where the cache ends, and steps on with the second, which has 104 more to come: in its own
    memory, again from the start."""
    where: Path = request.getfixturevalue(folder)
    caches: list[Cache] = []
    real = Decoder.cache

    def recorded(self: Decoder, **size: Any) -> Cache:
        caches.append(real(self, **size))
        return caches[-1]

    monkeypatch.setattr(Decoder, "cache", recorded)
    model = int8conv.load(where)
    model.end_tokens = frozenset()
    assert model.config.max_positions == 1024
    found = model.generate_batch([[5] * 1000, [5, 6]])
    assert [len(each.token_ids) for each in found] == [24, 128]
    assert [each.finish_reason for each in found] == ["length", "length"]
    (cache,) = caches
    assert cache.capacity == 1024
    assert cache.lengths.tolist() == [104, 129]


def test_a_stop_string_that_the_last_token_completes() -> None:
    """A line break of Llama 2 is a byte, which is only text once it is known what follows."""
    tokenizer, _ = byte_fallback(strip=True)
    found = Continuation(
        [256], 2, Sampling(), end_tokens=frozenset(), detokenizer=Detokenizer(tokenizer, [256]),
        stops=["\n"],
    )  # fmt: skip
    for token in (256, ord("\n")):
        found.take(Choice(token))
    assert (found.result().text, found.result().finish_reason) == (" the", "stop")
