"""Tokenizers as folders have them, and text that streams whole characters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.decoders import Metaspace
from tokenizers.models import WordLevel

from int8conv.errors import TokenizerError
from int8conv.runtime.text.tokenizer import Detokenizer, Tokenizer

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


def test_characters_of_several_tokens_come_whole(example: Path) -> None:
    tokenizer = Tokenizer.load(example)
    pieces = [p for p in push_all(Detokenizer(tokenizer), tokenizer.encode(TEXT)) if p]
    assert "".join(pieces) == TEXT
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)
    assert len(pieces) > 10


def push_all(detokenizer: Detokenizer, token_ids: list[int]) -> list[str]:
    return [*map(detokenizer.push, token_ids), detokenizer.finish()]


def test_a_character_without_its_end_is_left_out(example: Path) -> None:
    tokenizer = Tokenizer.load(example)
    ids = tokenizer.encode("ok 🙂")
    assert tokenizer.decode(ids[:-1]).endswith("\N{REPLACEMENT CHARACTER}")
    assert "".join(push_all(Detokenizer(tokenizer), ids[:-1])) == "ok "


def test_bytes_that_are_no_text_do_not_hold_it_up(example: Path) -> None:
    tokenizer = Tokenizer.load(example)
    (byte, *_) = tokenizer.encode("🙂", special=False)
    ids = [byte] * 30 + tokenizer.encode("ok")
    pieces = push_all(Detokenizer(tokenizer), ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert sum(map(bool, pieces)) > 3


def test_a_space_between_prompt_and_text_is_kept() -> None:
    """Tokenizers in the manner of SentencePiece take the space off the first token of a text."""
    vocabulary = {"▁Once": 0, "▁upon": 1, "▁a": 2, "<s>": 3}
    rust = RustTokenizer(WordLevel(vocabulary, unk_token="<s>"))
    rust.decoder = Metaspace()
    rust.add_special_tokens(["<s>"])
    tokenizer = Tokenizer(rust)
    assert push_all(Detokenizer(tokenizer, [3, 0]), [1, 3, 2]) == [" upon", "", " a", ""]
    assert push_all(Detokenizer(tokenizer), [1, 2]) == ["upon", " a", ""]


def test_no_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=f"{tmp_path}: no tokenizer in this folder"):
        Tokenizer.load(tmp_path)


def test_an_unusable_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": "9"}')
    with pytest.raises(TokenizerError, match="unusable"):
        Tokenizer.load(tmp_path)
