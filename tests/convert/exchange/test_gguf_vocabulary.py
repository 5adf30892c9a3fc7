"""Vocabularies for llama.cpp: tokens, their kinds, the order of merges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from int8conv.convert.exchange.gguf_vocabulary import read_vocabulary
from int8conv.errors import NotFoundError, TokenizerError

LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def split(regex: str) -> dict[str, Any]:
    cut = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated"}
    return {"type": "Sequence", "pretokenizers": [cut, LEVEL | {"use_regex": False}]}


def write(folder: Path, **changes: Any) -> Path:
    content = {
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
        "added_tokens": [
            {"id": 3, "content": "<s>", "special": True},
            {"id": 4, "content": "#", "special": False},
        ],
        "pre_tokenizer": LEVEL,
    }
    (folder / "tokenizer.json").write_text(json.dumps(content | changes))
    return folder


def test_byte_level(tmp_path: Path) -> None:
    found = read_vocabulary(write(tmp_path), 6)
    assert (found.model, found.pre, found.has_merges) == ("gpt2", "gpt-2", True)
    assert found.tokens == ["a", "b", "ab", "<s>", "#", "[PAD5]"]
    assert found.types == [1, 1, 1, 3, 4, 5]
    assert found.space_first is None
    assert not found.notes


@pytest.mark.parametrize(
    ("pre", "name"),
    [
        ({"type": "Sequence", "pretokenizers": [DIGITS, LEVEL]}, "smollm"),
        (split(QWEN), "qwen2"),
        (split(QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|")), "llama-bpe"),
    ],
)
def test_ways_to_cut_words(pre: object, name: str, tmp_path: Path) -> None:
    found = read_vocabulary(write(tmp_path, pre_tokenizer=pre, normalizer={"type": "NFC"}), 5)
    assert found.pre == name
    assert found.notes == ("llama.cpp does not apply the tokenizer's normalizer: NFC",)


def test_sentencepiece(tmp_path: Path) -> None:
    vocab = {"<unk>": 0, "<0x0A>": 1, "a": 2, "b": 3, "c": 4, "ab": 5, "abc": 6}
    model = {"type": "BPE", "vocab": vocab, "byte_fallback": True, "unk_token": "<unk>",
             "merges": [["a", "b"], ["ab", "c"], ["a", "bc"]]}  # fmt: skip
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    for normalizer, first in ((replace, False), ({"type": "Sequence", "normalizers": [{"type": "Prepend"}, replace]}, True)):  # fmt: skip
        folder = write(tmp_path, model=model, added_tokens=[], pre_tokenizer=None, normalizer=normalizer)  # fmt: skip
        found = read_vocabulary(folder, 7)
        assert (found.model, found.has_merges, found.space_first) == ("llama", False, first)
        assert found.types == [2, 6, 1, 1, 1, 1, 1]
        assert found.scores is not None
        assert found.scores[5:] == [0, -1]
        assert max(found.scores[:5]) < -1000


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model": {"type": "Unigram", "vocab": []}}, "expected a BPE model, found Unigram"),
        ({"pre_tokenizer": split("x")}, "words cut as by GPT-2"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "byte fallback"),
        ({"added_tokens": [{"id": 5, "content": "x"}]}, "outside of the model's vocabulary"),
    ],
)
def test_others_are_refused(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=text):
        read_vocabulary(write(tmp_path, **changes), 5)


def test_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"needs a tokenizer\.json"):
        read_vocabulary(tmp_path, 5)
