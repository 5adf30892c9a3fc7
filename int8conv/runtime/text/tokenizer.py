"""Text to token ids and back, through the ``tokenizers`` package."""

from __future__ import annotations

import json
from collections.abc import Iterable
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
        tokenizer.no_truncation()  # as the file may ask for: made for training, it would cut prompts
        tokenizer.no_padding()
        self._tokenizer = tokenizer
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
