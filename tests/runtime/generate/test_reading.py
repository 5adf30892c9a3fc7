"""Log-probabilities and vectors of given texts are those of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import int8conv
from int8conv.errors import ArgumentError, GenerationError
from int8conv.runtime.model import Model

IDS = [*range(5, 75), 9, 9]


@pytest.fixture(scope="module")
def theirs(example: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(example, dtype=torch.float32)


@pytest.fixture(scope="module")
def model(example: Path) -> Model:
    return int8conv.load(example)


def test_log_probabilities(model: Model, theirs: Any) -> None:
    """Of more tokens than are computed at a time."""
    found = model.prompt_logprobs(IDS, top_logprobs=2)
    with torch.no_grad():
        expected = theirs(torch.tensor([IDS])).logits[0].log_softmax(-1)
    own = expected[:-1].gather(1, torch.tensor(IDS[1:])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(found.logprobs), own, rtol=0, atol=1e-3)
    assert found.token_ids == IDS
    assert found.top_logprobs is not None
    assert [top[0][0] for top in found.top_logprobs] == expected[:-1].argmax(-1).tolist()
    assert {len(top) for top in found.top_logprobs} == {2}
    assert (model.prompt_logprobs([5]).logprobs, model.prompt_logprobs([5]).top_logprobs) == (
        [],
        None,
    )
    with pytest.raises(GenerationError, match="the prompt has no tokens"):
        model.prompt_logprobs([])


def test_vectors(model: Model, theirs: Any) -> None:
    with torch.no_grad():
        states = theirs.model(torch.tensor([IDS])).last_hidden_state[0]
    mean, last = (model.embed([IDS, [5, 6]], pooling=how, normalize=False) for how in ("mean", "last"))  # fmt: skip
    torch.testing.assert_close(mean[0], states.mean(0), rtol=0, atol=1e-3)
    torch.testing.assert_close(last[0], states[-1], rtol=0, atol=1e-3)
    torch.testing.assert_close(model.embed([IDS])[0], mean[0] / mean[0].norm(), rtol=0, atol=1e-5)
    assert model.embed([]).shape == (0, mean.shape[1])
    with pytest.raises(ArgumentError, match="pooling: expected mean or last"):
        model.embed(["a"], pooling="max")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="prompts: expected a list of prompts"):
        model.embed("a")
