"""Text to token ids and back, through the ``tokenizers`` package."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing

from ...errors import CheckpointError, NotFoundError, TokenizerError
from ...formats.json_file import read_json

FILES = ("tokenizer.json", "vocab.json", "merges.txt")


class Tokenizer:
    """The tokenizer of a checkpoint folder."""

    def __init__(self, tokenizer: RustTokenizer) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """From ``tokenizer.json``, or ``vocab.json`` and ``merges.txt`` (byte-level BPE).

        Raises:
            TokenizerError: none of them is there, or they are unusable.
        """
        try:
            if (folder / "tokenizer.json").is_file():
                return cls(RustTokenizer.from_file(str(folder / "tokenizer.json")))
            if all((folder / name).is_file() for name in FILES[1:]):
                return cls(_byte_level_bpe(folder))
        except CheckpointError:
            raise
        except Exception as error:  # the library raises plain Exception
            raise TokenizerError(f"tokenizer files are unusable: {error}", file=folder) from error
        raise TokenizerError(
            "no tokenizer in this folder", file=folder,
            expected="tokenizer.json, or vocab.json and merges.txt",
        )  # fmt: skip

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids; if ``special``, with the special tokens that the tokenizer puts around a text."""
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def decode(self, token_ids: Iterable[int]) -> str:
        """Text without special tokens."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def token_id(self, token: str) -> int | None:
        """The id of a token by its own text, such as ``<s>``; None if there is no such token."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def decode_stream(self, token_ids: Iterable[int]) -> Iterator[str]:
        """Text as its tokens come; characters of several tokens come whole."""
        detokenizer = Detokenizer(self)
        for token in token_ids:
            if piece := detokenizer.push(token):
                yield piece
        if piece := detokenizer.finish():
            yield piece


_CONTEXT = 6
"""Tokens before a token that its text may depend on: spaces between words, characters of up to four tokens."""
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""How the first bytes of a character decode."""
_PATIENCE = 8
"""So many tokens that end in the middle of a character are no character: bytes that are not UTF-8."""


class Detokenizer:
    """Text as its tokens come.

    A token's text is what it adds to the text of a few tokens before it: alone, many tokenizers drop the space in front. The
    first bytes of a character wait for the others.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        """``prompt``: the tokens that stand before the text."""
        self._tokenizer = tokenizer
        self._shown = list(prompt[-_CONTEXT:])
        if tokenizer.decode(self._shown).endswith(_INCOMPLETE):
            self._shown = []
        self._waiting: list[int] = []

    def push(self, token: int) -> str:
        """The next token -> the text that is complete with it; empty, if it has the first bytes of a character."""
        self._waiting.append(token)
        added = self._added()
        if added.endswith(_INCOMPLETE) and len(self._waiting) < _PATIENCE:
            return ""
        self._shown = (self._shown + self._waiting)[-_CONTEXT:]
        self._waiting = []
        return added

    def finish(self) -> str:
        """What still waits, without the beginning of a character whose end is missing."""
        added = self._added() if self._waiting else ""
        self._waiting = []
        return added.rstrip(_INCOMPLETE)

    def _added(self) -> str:
        before = self._tokenizer.decode(self._shown)
        return self._tokenizer.decode(self._shown + self._waiting)[len(before) :]


def _byte_level_bpe(folder: Path) -> RustTokenizer:
    """GPT-2's tokenizer (OPT's too) as old checkpoints store it."""
    model = BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer = RustTokenizer(model)
    settings = _optional_json(folder / "tokenizer_config.json")
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=bool(settings.get("add_prefix_space")))
    tokenizer.decoder = ByteLevelDecoder()
    special = _optional_json(folder / "special_tokens_map.json") | {
        key: value for key, value in settings.items() if key.endswith("_token")
    }
    contents = {key: _content(value) for key, value in special.items()}
    tokens = sorted({token for token in contents.values() if token})
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in tokens])
    bos = contents.get("bos_token")
    if settings.get("add_bos_token") and bos:
        tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


def _optional_json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except NotFoundError:
        return {}


def _content(token: object) -> str | None:
    value = token.get("content") if isinstance(token, dict) else token
    return value if isinstance(value, str) else None
