"""Text to token ids and back, through the ``tokenizers`` package."""

from __future__ import annotations

import base64
import json
import os
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing

from ...errors import Int8convError, TokenizerError
from ...formats.json_file import read_bounded, read_json, read_optional_json

FILES = ("tokenizer.json", "vocab.json", "merges.txt")
MOST_BYTES: Final = 256 << 20
"""Of a tokenizer file; the largest have 40 MB."""
MOST_GROWTH: Final = 10_000
"""Times that normalizing or decoding may lengthen a text."""


class Tokenizer:
    """The tokenizer of a checkpoint folder."""

    def __init__(self, tokenizer: RustTokenizer, folder: Path | None = None) -> None:
        self._tokenizer = tokenizer
        self._folder = folder
        added = tokenizer.get_added_tokens_decoder()
        self._special = {token_id for token_id, token in added.items() if token.special}
        kinds = _decoders(tokenizer)
        self.byte_level = "ByteLevel" in kinds
        """Whether tokens are bytes, in GPT-2's alphabet."""
        self.byte_fallback = "ByteFallback" in kinds
        """Whether characters outside the vocabulary are spelled in tokens of a byte, such as ``<0xE2>``."""

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """From ``tokenizer.json``, or ``vocab.json`` and ``merges.txt`` (byte-level BPE).

        Raises:
            TokenizerError: none of them is there, or they are unusable.
        """
        with unbroken(folder):
            if os.path.lexists(folder / "tokenizer.json"):
                data = read_bounded(folder / "tokenizer.json", MOST_BYTES)
                _check_charsmaps(data)
                return cls(_harmless(RustTokenizer.from_buffer(data)), folder)
            if all((folder / name).is_file() for name in FILES[1:]):
                return cls(_byte_level_bpe(folder), folder)
        raise TokenizerError(
            "no tokenizer in this folder", file=folder,
            expected="tokenizer.json, or vocab.json and merges.txt",
        )  # fmt: skip

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids; if ``special``, with the special tokens that the tokenizer puts around a text.

        Raises:
            TokenizerError: the tokenizer fails at this text; many that come with checkpoints do at some.
        """
        with unbroken(self._folder, "the tokenizer fails at this text"):
            return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def decode(self, token_ids: Iterable[int]) -> str:
        """Text without special tokens.

        Raises:
            TokenizerError: the tokenizer fails at these tokens.
        """
        with unbroken(self._folder, "the tokenizer fails at these tokens"):
            return self._tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def token_id(self, token: str) -> int | None:
        """The id of a token by its own text, such as ``<s>``; None if there is no such token."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def visible(self, token_id: int) -> str | None:
        """A token's spelling in the vocabulary; None if ``decode`` passes over it: a special token, or none at all."""
        if token_id in self._special:
            return None
        spelling: str | None = self._tokenizer.id_to_token(token_id)
        return spelling


def _decoders(tokenizer: RustTokenizer) -> set[str]:
    """Kinds of the decoders that turn tokens into text."""
    if tokenizer.decoder is None:
        return set()
    decoder = json.loads(tokenizer.decoder.__getstate__())  # the library tells it nowhere else
    return {each.get("type") for each in (decoder, *decoder.get("decoders", ()))}


def _byte_level_bpe(folder: Path) -> RustTokenizer:
    """GPT-2's tokenizer (OPT's too) as old checkpoints store it."""
    vocab = read_json(folder / "vocab.json")
    lines = read_bounded(folder / "merges.txt", MOST_BYTES).decode("utf-8").split("\n")
    stripped = [line.removesuffix("\r") for line in lines]
    pairs = [line.split(" ") for line in stripped if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError("merges.txt has a line that is no pair")
    tokenizer = RustTokenizer(BPE(vocab, [(one, other) for one, other in pairs]))
    settings = read_optional_json(folder / "tokenizer_config.json")
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=bool(settings.get("add_prefix_space")))
    tokenizer.decoder = ByteLevelDecoder()
    special = read_optional_json(folder / "special_tokens_map.json") | {
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


def _content(token: object) -> str | None:
    value = token.get("content") if isinstance(token, dict) else token
    return value if isinstance(value, str) else None


_CHARSMAP: Final = re.compile(rb'"precompiled_charsmap"\s*:\s*"([^"]*)')


def _check_charsmaps(data: bytes) -> None:
    """Raise ValueError for a table of SentencePiece's that is shorter than it says.

    The library allocates what it says, up to 8 GiB, and where there is not so much ends the process.
    """
    for match in _CHARSMAP.finditer(data):
        begin = base64.b64decode(match[1][:8].ljust(8, b"A"))
        if int.from_bytes(begin[:4], "little") > len(match[1]):
            raise ValueError("precompiled_charsmap is cut off")


def _harmless(tokenizer: RustTokenizer) -> RustTokenizer:
    """Without what would cut or fill texts, and none that makes them endless.

    Raises:
        ValueError: replacements that lengthen a text by more than any good one.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()  # to 2^60 tokens, if the file says so
    for part in (tokenizer.normalizer, tokenizer.decoder):
        if part is not None and _growth(json.loads(part.__getstate__())) > MOST_GROWTH:
            raise ValueError(
                f"replacements that make a text more than {MOST_GROWTH:,} times as long"
            )
    return tokenizer


def _growth(part: dict[str, Any]) -> float:
    """Times that the replacements of a part may lengthen a text: one after the other, each of every character."""
    if part.get("type") == "Replace":
        pattern, content = part["pattern"].get("String", ""), len(part["content"])
        return max(1.0, content / len(pattern)) if pattern else 1.0 + content  # at every place
    growth = 1.0
    for inner in part.get("normalizers") or part.get("decoders") or ():
        growth *= _growth(inner)
    return growth


_SILENCE: Final = threading.Lock()
_silent = 0
_stderr = -1


@contextmanager
def unbroken(folder: Path | None, problem: str = "tokenizer files are unusable") -> Iterator[None]:
    """In the block, whatever the tokenizers library does becomes a TokenizerError, its panics too, which say nothing on stderr.

    A panic of its Rust code is a BaseException that is no Exception, and prints where it happened.
    """
    try:
        _mute()
        try:
            yield
        finally:
            _unmute()
    except Int8convError:
        raise
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # the library raises plain Exception
        raise TokenizerError(f"{problem}: {error}", file=folder) from error


def _mute() -> None:
    """Let file descriptor 2 lead nowhere, until the last of those who asked for it is done."""
    global _silent, _stderr
    with _SILENCE:
        _silent += 1
        if _silent == 1:
            _stderr = -1
            with suppress(OSError):  # closed
                _stderr = os.dup(2)
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, 2)
                os.close(nowhere)


def _unmute() -> None:
    global _silent
    with _SILENCE:
        _silent -= 1
        if _silent == 0 and _stderr >= 0:
            os.dup2(_stderr, 2)
            os.close(_stderr)
