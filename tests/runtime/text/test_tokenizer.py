"""Tokenizers as folders have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as RustTokenizer

from int8conv.errors import TokenizerError
from int8conv.runtime.text.tokenizer import Tokenizer

TEXT = "A list of names: größer, 日本語, naïve 🙂.\n\tdef f(x): return x"


@pytest.fixture
def old_files(example: Path, tmp_path: Path) -> Path:
    """The example's tokenizer as GPT-2 and OPT checkpoints store theirs."""
    model = json.loads((example / "tokenizer.json").read_text())["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    settings = {"add_prefix_space": False, "bos_token": {"content": "<|endoftext|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


def test_round_trip(example: Path) -> None:
    tokenizer = Tokenizer.load(example)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def test_vocab_and_merges_give_the_same_tokens(example: Path, old_files: Path) -> None:
    expected = (
        RustTokenizer.from_file(str(example / "tokenizer.json")).encode(TEXT + "<|endoftext|>").ids
    )
    tokenizer = Tokenizer.load(old_files)
    assert tokenizer.encode(TEXT + "<|endoftext|>") == expected
    assert tokenizer.decode(expected) == TEXT


def test_bos_is_added_where_the_config_says_so(old_files: Path) -> None:
    path = old_files / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"add_bos_token": True}))
    assert Tokenizer.load(old_files).encode("A")[0] == 0


def test_truncation_and_padding_of_the_file_are_off(example: Path, tmp_path: Path) -> None:
    """Saved with a tokenizer that was used for training; they would cut every prompt."""
    rust = RustTokenizer.from_file(str(example / "tokenizer.json"))
    expected = rust.encode(TEXT).ids
    rust.enable_truncation(5)
    rust.enable_padding(length=64)
    rust.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).encode(TEXT) == expected


def test_no_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=f"{tmp_path}: no tokenizer in this folder"):
        Tokenizer.load(tmp_path)


def test_an_unusable_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": "9"}')
    with pytest.raises(TokenizerError, match="unusable"):
        Tokenizer.load(tmp_path)
