"""Streamed text is the text of all tokens decoded at once, whatever the tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders
from tokenizers.models import WordLevel

from benchmarks.streamed_text import KINDS, U_FFFD, byte_fallback, byte_level, stream
from int8conv.runtime.text.detokenizer import Detokenizer, token_bytes
from int8conv.runtime.text.tokenizer import Tokenizer

TEXT = "A list of names: größer, 日本語, naïve 🙂.\n\tdef f(x): return x"
SEQUENCES = 700
"""Of each kind; ``python -m benchmarks.streamed_text`` takes 10,000."""


@pytest.mark.parametrize("kind", KINDS)
def test_random_tokens(kind: str) -> None:
    assert not list(KINDS[kind](SEQUENCES))


def test_characters_of_several_tokens_come_whole(example: Path) -> None:
    tokenizer = Tokenizer.load(example)
    detokenizer, ids = Detokenizer(tokenizer), tokenizer.encode(TEXT)
    pieces = [piece for piece in [*map(detokenizer.push, ids), detokenizer.finish()] if piece]
    assert "".join(pieces) == TEXT
    assert all(U_FFFD not in piece for piece in pieces)
    assert len(pieces) > 10


def test_a_character_without_its_end_is_left_out(example: Path) -> None:
    tokenizer = Tokenizer.load(example)
    ids = tokenizer.encode("ok 🙂")
    assert tokenizer.decode(ids[:-1]).endswith(U_FFFD)
    assert stream(tokenizer, ids[:-1]) == "ok "


def test_a_replacement_character_of_the_model_is_kept() -> None:
    tokenizer, data = byte_level()
    token = next(t for t, d in data.items() if d == U_FFFD.encode())
    assert stream(tokenizer, [*b"", token]) == U_FFFD
    assert Detokenizer(tokenizer).push(token) == U_FFFD


def test_the_bytes_of_each_token(example: Path) -> None:
    """Of all tokens they are the text's, with spaces that a token alone loses, and parts of characters."""
    tokenizer, data = byte_level()
    assert all(token_bytes(tokenizer, token) == expected for token, expected in data.items())
    fallback, _ = byte_fallback(strip=True)
    assert [token_bytes(fallback, token) for token in (256, 0xE2)] == [b" the", b"\xe2"]
    own = Tokenizer.load(example)
    assert b"".join(token_bytes(own, token) for token in own.encode(TEXT)) == TEXT.encode()
    assert token_bytes(own, 0) == b"" != token_bytes(own.keeping_special, 0)


def test_bytes_that_are_no_text_do_not_hold_it_up() -> None:
    tokenizer, data = byte_level()
    lead = next(t for t, d in data.items() if d == b"\xf0")
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push(lead) for _ in range(30)] == ["", *[U_FFFD] * 29]


def test_a_run_of_byte_tokens_comes_when_it_ends() -> None:
    tokenizer, _ = byte_fallback(strip=True)
    the = 256
    detokenizer = Detokenizer(tokenizer, [the])
    pieces = [detokenizer.push(t) for t in [*"🙂🙂🙂".encode(), the]]
    assert pieces == [""] * 12 + ["🙂🙂🙂 the"]


@pytest.mark.parametrize("given", range(1, 8))
@pytest.mark.parametrize(
    "kind", [byte_level, lambda: byte_fallback(strip=True)], ids=["bytes", "fallback"]
)
def test_a_prompt_may_end_within_a_character(kind: object, given: int) -> None:
    tokenizer, data = kind()  # type: ignore[operator]
    of = {d: t for t, d in data.items()}
    ids = [of[bytes([b])] for b in "日🙂".encode()]
    assert stream(tokenizer, ids[given:], ids[:given]) == (
        "日🙂" if given < 3 else "🙂" if given < 7 else ""
    )


def test_a_space_between_prompt_and_text_is_kept() -> None:
    """Tokenizers in the manner of SentencePiece take the space off the first token of a text."""
    vocabulary = {"▁Once": 0, "▁upon": 1, "▁a": 2, "<s>": 3}
    rust = RustTokenizer(WordLevel(vocabulary, unk_token="<s>"))
    rust.decoder = decoders.Metaspace()
    rust.add_special_tokens(["<s>"])
    tokenizer = Tokenizer(rust)
    after, alone = Detokenizer(tokenizer, [3, 0]), Detokenizer(tokenizer)
    assert [*map(after.push, [1, 3, 2]), after.finish()] == [" upon", "", " a", ""]
    assert [*map(alone.push, [1, 2]), alone.finish()] == ["upon", " a", ""]


def test_ids_outside_the_vocabulary_have_no_text() -> None:
    """Embeddings are often padded to more rows than there are tokens."""
    tokenizer, _ = byte_fallback(strip=True)
    assert stream(tokenizer, [257, 256, 9999, 256]) == tokenizer.decode([257, 256, 9999, 256])
