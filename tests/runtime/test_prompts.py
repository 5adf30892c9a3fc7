"""What a model takes for a prompt, a tokenizer and an end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as RustTokenizer
from transformers import PreTrainedTokenizerFast

import int8conv
from int8conv.errors import ArgumentError, TokenizerError
from int8conv.runtime.model import Model
from int8conv.runtime.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def model(example_int8: Path) -> Model:
    return int8conv.load(example_int8)


def test_tokens_that_end_it_are_given_by_id_or_text(model: Model) -> None:
    free = model.generate("The function", max_new_tokens=8).token_ids
    word = model.tokenizer.visible(free[3])
    assert word is not None
    for ends in ([free[3]], [word], word):
        found = model.generate("The function", max_new_tokens=8, end_tokens=ends)
        assert found.token_ids == free[: free.index(free[3]) + 1]
    batch = model.generate_batch([[5, 6], "The function"], max_new_tokens=8, end_tokens=[free[3]])
    assert batch[1].finish_reason == "stop"
    for wrong in (["<nothing>"], [10**6]):
        with pytest.raises(ArgumentError, match="end_tokens: expected tokens of the vocabulary"):
            model.generate("A", end_tokens=wrong)


def test_a_stop_string_that_is_a_special_token(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no text, and so was never found."""
    free = model.generate("The function", max_new_tokens=8)
    monkeypatch.setattr(model.tokenizer, "_special", {free.token_ids[3]})
    word = model.tokenizer._tokenizer.id_to_token(free.token_ids[3])
    found = model.generate("The function", max_new_tokens=8, stop=word)
    assert found.token_ids == free.token_ids[: free.token_ids.index(free.token_ids[3]) + 1]
    assert found.finish_reason == "stop"


def test_special_tokens_are_shown_on_request(model: Model) -> None:
    ends = {"logit_bias": {0: 1e9}, "max_new_tokens": 2}
    model.end_tokens, before = frozenset(), model.end_tokens
    text = model.tokenizer.keeping_special.decode([0])
    assert model.generate([5], **ends).text == ""  # type: ignore[arg-type]
    assert model.generate([5], special_tokens=True, **ends).text == text * 2 != ""  # type: ignore[arg-type]
    model.end_tokens = before


def test_prompts_that_are_none(model: Model) -> None:
    for prompt in (3, [1.5], None, b"abc", [[1]]):
        with pytest.raises(ArgumentError, match="prompt: expected text or token ids"):
            model.generate(prompt)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="prompts: expected a list of prompts, found 'abc'"):
        model.generate_batch("abc")
    assert model.generate(torch.tensor([5, 6]), max_new_tokens=1).prompt_tokens == 2  # type: ignore[arg-type]


def test_a_tokenizer_of_ones_own(example: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(example / name)
    rust = RustTokenizer.from_file(str(example / "tokenizer.json"))
    expected = int8conv.load(example).generate("A vector", max_new_tokens=4)
    for given in (rust, PreTrainedTokenizerFast(tokenizer_object=rust), example, Tokenizer.load(example)):  # fmt: skip
        model = int8conv.load(tmp_path, tokenizer=given)
        assert model.generate("A vector", max_new_tokens=4) == expected
    with pytest.raises(ArgumentError, match="tokenizer: expected one of the tokenizers library"):
        int8conv.load(tmp_path, tokenizer=3)  # type: ignore[arg-type]
    for bare in (int8conv.load(tmp_path), int8conv.load(example, tokenizer=False)):
        found = bare.generate([5, 6], max_new_tokens=4)
        assert (found.text, len(found.token_ids)) == ("", 4)
        with pytest.raises(TokenizerError):
            bare.generate("A vector")
