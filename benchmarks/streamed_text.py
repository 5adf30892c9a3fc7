"""Streamed text against the text of all tokens decoded at once, for random tokens of each kind of decoder.

    python -m benchmarks.streamed_text            # 10,000 sequences of each kind

The tests run fewer of them.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache

from tokenizers import AddedToken, decoders
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import BPE, WordPiece

from int8conv.runtime.text.detokenizer import Detokenizer
from int8conv.runtime.text.tokenizer import Tokenizer

U_FFFD = "\N{REPLACEMENT CHARACTER}"
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


Failure = tuple[list[int], str, str]
"""Tokens, what was streamed, what should have been."""


def byte_level_failures(count: int) -> Iterator[Failure]:
    tokenizer, data = byte_level()
    lead = {t: 6.0 for t, d in data.items() if len(d) != 1 or d[0] >= 0xC2}
    for ids in sequences(count, list(data), [lead.get(t, 1.0) for t in data]):
        whole = b"".join(data[t] for t in ids)
        expected = whole.decode(errors="replace")
        yield from different(tokenizer, ids, expected[:-1] if cut(whole) else expected)


def byte_fallback_failures(count: int, *, strip: bool) -> Iterator[Failure]:
    """Runs of characters outside the vocabulary, sound, broken, and cut at the end."""
    tokenizer, data = byte_fallback(strip)
    draw = random.Random(2)
    ordinary = [t for t, d in data.items() if d is None or d == b""]
    for _ in range(count):
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
        yield from different(tokenizer, ids, tokenizer.decode(_without_cut(ids, data)))


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


def word_piece_failures(count: int) -> Iterator[Failure]:
    tokenizer = word_piece()
    for ids in sequences(count, range(9), [1.0] * 9):
        yield from different(tokenizer, ids, tokenizer.decode(ids))


def different(tokenizer: Tokenizer, ids: list[int], expected: str) -> Iterator[Failure]:
    if (found := stream(tokenizer, ids)) != expected:
        yield ids, found, expected


KINDS: dict[str, Callable[[int], Iterator[Failure]]] = {
    "byte-level": byte_level_failures,
    "byte fallback, Llama 2": lambda count: byte_fallback_failures(count, strip=True),
    "byte fallback, Gemma": lambda count: byte_fallback_failures(count, strip=False),
    "WordPiece": word_piece_failures,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=10_000)
    count = parser.parse_args().sequences
    failed = False
    for kind, failures in KINDS.items():
        found = list(failures(count))
        print(f"{kind}: {len(found)} of {count:,} sequences differ", *found[:1])
        failed |= bool(found)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
