"""Text to token ids and back, using the ``tokenizers`` package."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Protocol

from tokenizers import Tokenizer as RustTokenizer

from ...errors import ArgumentError, TokenizerError
from ...formats.json_file import read_bounded
from . import byte_level_files, slow_files
from .byte_level_files import MERGES_FILE, MOST_BYTES, VOCAB_FILE
from .panics import unbroken
from .token_settings import read_token_settings

FILE: Final = "tokenizer.json"
MOST_GROWTH: Final = 10_000
"""Largest factor by which normalizing or decoding may lengthen a text."""


class Tokenizer:
    """The tokenizer of a checkpoint folder."""

    def __init__(
        self, tokenizer: RustTokenizer, folder: Path | None = None, *, keep_special: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._keep_special = keep_special
        self._folder = folder
        added = tokenizer.get_added_tokens_decoder()
        self._special = {token_id for token_id, token in added.items() if token.special}
        kinds = _decoders(tokenizer)
        self.byte_level = "ByteLevel" in kinds
        """Whether tokens are bytes, in GPT-2's alphabet."""
        self.byte_fallback = "ByteFallback" in kinds
        """Whether characters outside the vocabulary are spelled as tokens of one byte, such as ``<0xE2>``."""

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Load ``tokenizer.json``, or the files of its class: ``vocab.json`` and ``merges.txt`` for GPT-2, GPT-NeoX and Qwen 2;
        through transformers SentencePiece, tiktoken and other classes.

        Raises:
            TokenizerError: none of them exists, they are unusable, or no exact tokenizer can be built from them.
            JsonFileError: another tokenizer file is malformed.
        """
        if not cls.is_in(folder):
            raise TokenizerError(
                "no tokenizer in this folder", file=folder,
                expected=f"{FILE}, or {VOCAB_FILE} and {MERGES_FILE}, or tokenizer.model",
                hint="token ids can be given and taken without one",
            )  # fmt: skip
        settings = read_token_settings(folder)
        with unbroken(folder):
            if os.path.lexists(folder / FILE):
                data = read_bounded(folder / FILE, MOST_BYTES)
                _check_charsmaps(data)
                _check_normalizer(data)
                built = RustTokenizer.from_buffer(data)
                byte_level_files.add_tokens(built, settings)
                return cls(_harmless(built), folder)
            kind = byte_level_files.kind_of(settings)
            pair = all(os.path.lexists(folder / name) for name in (VOCAB_FILE, MERGES_FILE))
            if pair and byte_level_files.is_known(kind):
                return cls(byte_level_files.build(folder, settings), folder)
            return cls(_harmless(slow_files.build(folder, kind)), folder)

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether a folder has any file that ``load`` can read a vocabulary from."""
        return any(os.path.lexists(folder / name) for name in (FILE, *slow_files.FILES))

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids; with ``special``, including the special tokens that the tokenizer adds around a text.

        Raises:
            TokenizerError: the tokenizer fails on this text, as many do on some texts.
        """
        if not _is_unicode(text):
            raise TokenizerError("the text has half a surrogate pair", expected="Unicode", found=ascii(text)[:60])  # fmt: skip
        with unbroken(self._folder, "the tokenizer fails on this text"):
            return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def decode(self, token_ids: Iterable[int]) -> str:
        """Text without special tokens, unless they are to be kept.

        Raises:
            TokenizerError: the tokenizer fails on these tokens.
        """
        with unbroken(self._folder, "the tokenizer fails on these tokens"):
            return self._tokenizer.decode(
                list(token_ids), skip_special_tokens=not self._keep_special
            )

    def token_id(self, token: str) -> int | None:
        """The id of a token given its text, such as ``<s>``; None if there is no such token."""
        found: int | None = self._tokenizer.token_to_id(token) if _is_unicode(token) else None
        return found

    def is_special(self, token_id: int) -> bool:
        """Whether a token is one of those that are no text."""
        return token_id in self._special

    @cached_property
    def keeping_special(self) -> Tokenizer:
        """The same, but ``decode`` has the text of special tokens too."""
        return Tokenizer(self._tokenizer, self._folder, keep_special=True)

    def to_json(self) -> str:
        """What ``tokenizer.json`` would hold, for other libraries."""
        text: str = self._tokenizer.to_str()
        return text

    def visible(self, token_id: int) -> str | None:
        """A token's spelling in the vocabulary; None if ``decode`` skips it (a special or unknown token)."""
        if token_id in self._special and not self._keep_special:
            return None
        spelling: str | None = self._tokenizer.id_to_token(token_id)
        return spelling


def _is_unicode(text: str) -> bool:
    """Whether it can be encoded: JSON and shells can make strings that cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class HasBackend(Protocol):
    """A fast tokenizer of transformers."""

    @property
    def backend_tokenizer(self) -> RustTokenizer:
        """What does its work."""


TokenizerLike = Tokenizer | RustTokenizer | HasBackend | str | os.PathLike[str]
"""What ``load`` takes for a tokenizer; a path is that of a folder."""


def read_tokenizer(given: TokenizerLike) -> Tokenizer:
    """A tokenizer that the user gives.

    Raises:
        ArgumentError: it is none.
        TokenizerError: as ``Tokenizer.load``.
    """
    if isinstance(given, Tokenizer):
        return given
    if isinstance(given, str | os.PathLike):
        return Tokenizer.load(Path(given))
    backend = getattr(given, "backend_tokenizer", given)
    if not isinstance(backend, RustTokenizer):
        raise ArgumentError(
            "tokenizer", expected="one of the tokenizers library, a fast one of transformers, a folder, None or False",
            found=type(given).__name__,
        )  # fmt: skip
    with unbroken(None):  # a copy: theirs stays as it is
        return Tokenizer(_harmless(RustTokenizer.from_str(backend.to_str())))


def _decoders(tokenizer: RustTokenizer) -> set[str]:
    """Kinds of the decoders that turn tokens into text."""
    if tokenizer.decoder is None:
        return set()
    decoder = json.loads(tokenizer.decoder.__getstate__())  # there is no other way to find out
    return {each.get("type") for each in (decoder, *decoder.get("decoders", ()))}


_CHARSMAP: Final = re.compile(rb'"precompiled_charsmap"\s*:\s*"([^"]*)')


def _check_charsmaps(data: bytes) -> None:
    """Raise ValueError for a truncated SentencePiece table.

    The library allocates the claimed size, up to 8 GiB, and aborts the process if that fails.
    """
    for match in _CHARSMAP.finditer(data):
        begin = base64.b64decode(match[1][:8].ljust(8, b"A"))
        if int.from_bytes(begin[:4], "little") > len(match[1]):
            raise ValueError("precompiled_charsmap is truncated")


_NORMALIZER: Final = re.compile(r'"normalizer"\s*:\s*(?=\{)')
_ESCAPED: Final = re.compile(r"\\u00[4-7]")
"""A letter, perhaps of a name."""
_MOST_NORMALIZERS: Final = 16


def _check_normalizer(data: bytes) -> None:
    """Raise ValueError for one that blows up texts: the library applies it to added tokens while it reads the file."""
    for part in _normalizers(data.decode(errors="replace")):
        try:
            growth = _growth(part)
        except (KeyError, TypeError, AttributeError, RecursionError):
            continue  # nothing that the library reads, either
        _check_growth(growth)


def _normalizers(text: str) -> Iterator[Any]:
    """All that a file has under that name: reading the whole of it takes half as long as the library does."""
    places = list(itertools.islice(_NORMALIZER.finditer(text), _MOST_NORMALIZERS + 1))
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        if len(places) > _MOST_NORMALIZERS or _ESCAPED.search(text):
            yield json.loads(text)["normalizer"]
            return
    for place in places:
        with contextlib.suppress(ValueError, RecursionError):
            yield json.JSONDecoder().raw_decode(text, place.end())[0]


def _check_growth(growth: float) -> None:
    if growth > MOST_GROWTH:
        raise ValueError(f"its replacements make a text more than {MOST_GROWTH:,} times as long")


def _harmless(tokenizer: RustTokenizer) -> RustTokenizer:
    """Disable truncation and padding, and refuse tokenizers that would blow up texts.

    Raises:
        ValueError: replacements lengthen a text more than any legitimate ones would.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()  # a file may ask for padding to 2^60 tokens
    for part in (tokenizer.normalizer, tokenizer.decoder):
        if part is not None:
            _check_growth(_growth(json.loads(part.__getstate__())))
    return tokenizer


def _growth(part: dict[str, Any]) -> float:
    """Largest factor by which the replacements of a part can lengthen a text, applied one after another to every character."""
    if part.get("type") == "Replace":
        pattern, content = part["pattern"].get("String", ""), len(part["content"])
        return max(1.0, content / len(pattern)) if pattern else 1.0 + content  # matches everywhere
    growth = 1.0
    for inner in part.get("normalizers") or part.get("decoders") or ():
        growth *= _growth(inner)
    return growth
