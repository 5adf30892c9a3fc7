"""Streamed text is the text of all tokens decoded at once, whatever the tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import BPE, WordLevel, WordPiece

from int8conv.runtime.text.detokenizer import Detokenizer
from int8conv.runtime.text.tokenizer import Tokenizer

TEXT = "A list of names: größer, 日本語, naïve 🙂.\n\tdef f(x): return x"
U_FFFD = "\N{REPLACEMENT CHARACTER}"
SEQUENCES = 10_000
WORDS = ["a", "b", " ", "é", "日", "🙂", " the", "ing", ".", U_FFFD]


PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
SPELLING = {b: chr(b) for b in PRINTABLE} | {b: chr(256 + i) for i, b in enumerate(OTHERS)}
"""How byte-level tokens are spelled: printable bytes as themselves, the others as U+0100 and on, in order."""


@cache
def byte_level() -> tuple[Tokenizer, dict[int, bytes]]:
    """A token for each byte, and a few for words and parts of characters."""
    parts = ["é日".encode()[1:4], " 🙂".encode()[:3], *map(str.encode, WORDS)]
    found = dict(enumerate([*(bytes([b]) for b in range(256)), *(d for d in parts if len(d) > 1)]))
    vocabulary = {"".join(map(SPELLING.__getitem__, data)): i for i, data in found.items()}
    rust = RustTokenizer(BPE(vocabulary, []))
    rust.decoder = decoders.ByteLevel()
    rust.add_special_tokens(["<s>"])
    rust.add_tokens([AddedToken("日<|user|>", special=False)])
    found[rust.token_to_id("<s>")] = b""
    found[rust.token_to_id("日<|user|>")] = "日<|user|>".encode()
    return Tokenizer(rust), found


@cache
def byte_fallback(strip: bool) -> tuple[Tokenizer, dict[int, bytes | None]]:
    """As Llama 2 and Mistral have it, with ``strip``, or Gemma without; None: an ordinary token."""
    words = ["▁the", "▁", "ing", "é", "日", ".", "<0x", "<0xZZ>", U_FFFD]
    vocabulary = {f"<0x{b:02X}>": b for b in range(256)}
    vocabulary |= {word: 256 + i for i, word in enumerate(words)}
    rust = RustTokenizer(BPE(vocabulary, [], byte_fallback=True))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    rust.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if strip else parts)
    rust.add_special_tokens(["<s>"])
    found: dict[int, bytes | None] = {b: bytes([b]) for b in range(256)}
    found |= {256 + i: None for i in range(len(words))}
    found[rust.token_to_id("<s>")] = b""
    return Tokenizer(rust), found


def word_piece() -> Tokenizer:
    words = ["[UNK]", "the", "##ing", "do", "n't", ".", "日", "##é", "[CLS]"]
    rust = RustTokenizer(WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    rust.decoder = decoders.WordPiece()
    rust.add_special_tokens(["[CLS]"])
    return Tokenizer(rust)


def stream(tokenizer: Tokenizer, ids: Sequence[int], prompt: Sequence[int] = ()) -> str:
    detokenizer = Detokenizer(tokenizer, prompt)
    return "".join([*map(detokenizer.push, ids), detokenizer.finish()])


def sequences(count: int, tokens: Sequence[int], weights: Sequence[float]) -> list[list[int]]:
    draw = random.Random(1)
    return [draw.choices(tokens, weights, k=draw.randrange(1, 12)) for _ in range(count)]


def cut(data: bytes) -> int:
    """How many bytes at the end are the beginning of a character that goes on."""
    for length in (3, 2, 1):
        tail = data[-length:]
        if len(tail) == length and any(_completes(tail, end) for end in _ENDS):
            return length
    return 0


_ENDS = [bytes([a, *[0x80] * n]) for a in (0x80, 0x90, 0xA0) for n in range(3)]


def _completes(tail: bytes, end: bytes) -> bool:
    try:
        return len((tail + end).decode()) == 1
    except UnicodeDecodeError:
        return False


def test_random_byte_level_tokens() -> None:
    tokenizer, data = byte_level()
    lead = {t: 6.0 for t, d in data.items() if len(d) != 1 or d[0] >= 0xC2}
    for ids in sequences(SEQUENCES, list(data), [lead.get(t, 1.0) for t in data]):
        whole, expected = b"".join(data[t] for t in ids), tokenizer.decode(ids)
        assert expected == whole.decode(errors="replace")
        assert stream(tokenizer, ids) == (expected[:-1] if cut(whole) else expected), ids


@pytest.mark.parametrize("strip", [True, False], ids=["Llama 2", "Gemma"])
def test_random_byte_fallback_tokens(strip: bool) -> None:
    """Runs of characters outside the vocabulary, sound, broken, and cut at the end."""
    tokenizer, data = byte_fallback(strip)
    draw = random.Random(2)
    ordinary = [t for t, d in data.items() if d is None or d == b""]
    for _ in range(SEQUENCES):
        ids = list[int]()
        for _ in range(draw.randrange(1, 7)):
            if draw.random() < 0.5:
                ids += "".join(draw.choices("日🙂é\n", k=draw.randrange(1, 6))).encode()
            if draw.random() < 0.1:
                ids.append(draw.randrange(256))
            if draw.random() < 0.7:
                ids += draw.choices(ordinary, k=draw.randrange(1, 3))
        if ids and draw.random() < 0.3:
            ids = ids[: draw.randrange(1, len(ids) + 1)]
        assert stream(tokenizer, ids) == tokenizer.decode(_without_cut(ids, data)), ids


def _without_cut(ids: list[int], data: dict[int, bytes | None]) -> list[int]:
    """Without the first bytes of a character at the end, if what stands before them in their run is UTF-8."""
    visible = [t for t in ids if data[t] != b""]
    ordinary = [i for i, t in enumerate(visible) if data[t] is None]
    run = bytes(visible[ordinary[-1] + 1 if ordinary else 0 :])
    begun = cut(run)
    try:
        run[: len(run) - begun].decode()
    except UnicodeDecodeError:
        return visible
    return visible[: len(visible) - begun]


def test_random_word_pieces() -> None:
    tokenizer = word_piece()
    for ids in sequences(SEQUENCES, range(9), [1.0] * 9):
        assert stream(tokenizer, ids) == tokenizer.decode(ids), ids


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
