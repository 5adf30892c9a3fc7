"""Decode text token by token, with the same result as decoding all tokens at once.

The text that a token adds may depend on tokens before and after it, in three ways:

- Many tokenizers drop the space before a text's first token: a token is decoded together with its predecessors.
- Byte-level tokens (GPT-2) are bytes, not characters: incomplete characters are held back.
- Byte fallback (SentencePiece: Llama 2, Mistral, Gemma) spells characters outside its vocabulary as tokens of one byte, ``<0xE2>``.
  A run of them is either valid UTF-8 as a whole or one U+FFFD per byte, which is only known when the run ends.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Final, Protocol

_CONTEXT: Final = 6
"""Smallest number of preceding tokens that a token is decoded with."""
_MOST_CONTEXT: Final = 24
"""Largest number; their text is decoded again only when they are cut."""
_PROMPT_WINDOW: Final = 64
"""Number of tokens at a prompt's end to look at."""


class Decoder(Protocol):
    """The required interface of a tokenizer."""

    byte_level: bool
    byte_fallback: bool

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens."""

    def visible(self, token_id: int) -> str | None:
        """A token's spelling in the vocabulary; None if ``decode`` skips it."""


class Detokenizer:
    """Decodes text token by token.

    Args:
        tokenizer: the tokenizer of the tokens.
        prompt: the tokens before the text.
    """

    def __init__(self, tokenizer: Decoder, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._spelling = _spelling(tokenizer)
        self._shown: list[int] = []
        """The last tokens whose text was returned, or the last ones of the prompt."""
        self._before: int | None = None
        """Number of characters of their text, if known."""
        self._waiting: list[int] = []
        self._run = bytearray()
        """Bytes at the end of the pending tokens: of byte-fallback tokens, or of an incomplete byte-level character."""
        self._sent = 0
        """Number of characters of the pending tokens that have already been returned."""
        self._begin(prompt)

    def push(self, token: int) -> str:
        """Add a token; returns the text that is now certain, which may be empty."""
        text = self._tokenizer.visible(token)
        if text is None:
            return ""
        self._waiting.append(token)
        data = self._spelling(text)
        if self._tokenizer.byte_fallback and data is not None:
            self._run += data
            return ""
        self._run = bytearray(
            _unfinished(self._run + (data or b"")) if self._tokenizer.byte_level else b""
        )
        added = self._added(self._waiting)
        if self._run:
            added = added[:-1]  # the replacement of an incomplete character's bytes
        new, self._sent = added[self._sent :], len(added)
        if not self._run:
            self._settle()
        return new

    def finish(self) -> str:
        """The remaining text, without an incomplete character."""
        waiting, rest = self._waiting, _unfinished(self._run)
        if self._tokenizer.byte_level and rest:
            waiting = []
        elif rest and _is_utf8(self._run[: -len(rest)]):
            waiting = waiting[: -len(rest)]
        added = self._added(waiting)[self._sent :] if waiting else ""
        self._settle()
        self._before = None
        return added

    def _begin(self, prompt: Sequence[int]) -> None:
        """A run at the prompt's end belongs to the prompt, except for the bytes of a character that the text has to complete."""
        spelled = [(token, self._tokenizer.visible(token)) for token in prompt[-_PROMPT_WINDOW:]]
        tokens = [(token, self._spelling(text)) for token, text in spelled if text is not None]
        if self._tokenizer.byte_fallback:
            self._shown = [token for token, data in tokens if data is None][-_CONTEXT:]
        else:
            self._shown = [token for token, _ in tokens][-_CONTEXT:]
        count, run = _begun([data for _, data in tokens])
        if count:
            self._waiting = [token for token, _ in tokens[-count:]]
            self._run = bytearray(run)
        if count and self._tokenizer.byte_level:
            self._shown = self._shown[:-count]  # nothing is decoded yet
            self._sent = len(self._added(self._waiting)) - 1

    def _settle(self) -> None:
        """Mark all pending tokens as returned."""
        self._shown += self._waiting
        if self._before is not None:
            self._before += self._sent
        if len(self._shown) > _MOST_CONTEXT:
            self._shown, self._before = self._shown[-_CONTEXT:], None
        self._waiting, self._run, self._sent = [], bytearray(), 0

    def _added(self, waiting: Sequence[int]) -> str:
        if self._before is None:
            self._before = len(self._tokenizer.decode(self._shown))
        return self._tokenizer.decode([*self._shown, *waiting])[self._before :]


def token_bytes(tokenizer: Decoder, token: int) -> bytes:
    """What a token adds to the text before it, in UTF-8: part of a character if it is one; empty if ``decode`` skips it."""
    text = tokenizer.visible(token)
    if text is None:
        return b""
    data = _spelling(tokenizer)(text)
    if data is not None:
        return data
    alone = tokenizer.decode([token])  # may lack the space that it begins with
    return tokenizer.decode([token, token])[len(alone) :].encode()


def _spelling(tokenizer: Decoder) -> Callable[[str], bytes | None]:
    """Token text -> its bytes, if the tokenizer's tokens are bytes; None if they are characters."""
    if tokenizer.byte_fallback:
        return _fallback_byte
    if tokenizer.byte_level:
        return lambda token: (
            bytes(map(_BYTES.__getitem__, token)) if set(token) <= _BYTES.keys() else token.encode()
        )
    return lambda token: None


def _fallback_byte(token: str) -> bytes | None:
    if len(token) != 6 or not (token.startswith("<0x") and token.endswith(">")):
        return None
    try:
        return bytes([int(token[3:5], 16)])
    except ValueError:
        return None


def _byte_alphabet() -> dict[str, int]:
    """The character that represents each byte in byte-level tokens (GPT-2's ``bytes_to_unicode``): visible Latin-1 characters
    represent themselves, the others are mapped from U+0100 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(b): b for b in visible} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTES: Final = _byte_alphabet()


def _begun(tokens: Sequence[bytes | None]) -> tuple[int, bytes]:
    """How many tokens at the end contain bytes of an incomplete character, and those bytes."""
    tail = list[bytes]()
    for data in reversed(tokens[-4:]):
        if data is None:
            break
        tail.insert(0, data)
    begun, count = _unfinished(b"".join(tail)), 0
    while sum(map(len, tail[len(tail) - count :])) < len(begun):
        count += 1
    return count, begun


def _unfinished(data: bytes | bytearray) -> bytes:
    """The bytes of an incomplete character at the end."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(bytes(data))
    begun = decoder.getstate()[0]
    # the decoder would also wait for the last byte of a surrogate, which is not a character
    return begun if len(begun.decode(errors="replace")) == 1 else b""


def _is_utf8(data: bytes | bytearray) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
