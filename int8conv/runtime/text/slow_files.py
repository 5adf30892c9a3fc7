"""Tokenizers that only transformers can read: SentencePiece and tiktoken files, and classes with custom rules.

Its converters also build a ``tokenizers.Tokenizer``, which is all that is kept. Code that comes with a checkpoint is not run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer as RustTokenizer

from ...errors import TokenizerError

FILES: Final = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tiktoken.model", "tekken.json", "vocab.json", "vocab.txt")  # fmt: skip
"""At least one of them exists."""
EXTRA: Final = "pip install 'int8conv[tokenizers-legacy]'"
_SAVE: Final = "save it as tokenizer.json where its own code runs, or give another tokenizer with --tokenizer or load(tokenizer=...)"


def build(folder: Path, kind: str | None) -> RustTokenizer:
    """A folder's tokenizer, as converted by transformers.

    Args:
        kind: name of its class, or ``model_type``; None if unknown.

    Raises:
        TokenizerError: the extra is not installed, transformers has no such class or only a slow one, or the files do not fit it.
    """
    try:
        from transformers import AutoTokenizer, TokenizersBackend
        from transformers.models.auto import tokenization_auto as auto
    except ImportError as error:
        raise _missing(folder, kind, "transformers") from error
    found = None
    if kind is not None:
        names = auto.TOKENIZER_MAPPING_NAMES
        found = auto.tokenizer_class_from_name(names.get(kind) or kind)
    if not (isinstance(found, type) and issubclass(found, TokenizersBackend)):
        raise _inexact(folder, kind)
    _check_vocabulary(folder, kind, has_rules="__init__" in vars(found))
    with _quiet():
        made: Any = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    backend = getattr(made, "backend_tokenizer", None)
    if not isinstance(backend, RustTokenizer):
        raise _inexact(folder, kind)
    return backend


def _check_vocabulary(folder: Path, kind: str | None, *, has_rules: bool) -> None:
    """Check that files which define only part of a tokenizer have a class with the rest, and that their library is installed."""
    for name in FILES[:4]:
        if not (folder / name).is_file():
            continue
        text = _is_text(folder / name)
        library = "tiktoken" if text else "sentencepiece"
        try:
            if text:
                import tiktoken  # noqa: F401
            else:
                import google.protobuf  # noqa: F401
                import sentencepiece
        except ImportError as error:
            raise _missing(folder, kind, library) from error
        if not text:  # checks the file, as the conversion trusts it
            sentencepiece.SentencePieceProcessor(model_file=os.fspath(folder / name))
        return
    if not has_rules:
        raise _inexact(folder, kind)


def _is_text(file: Path) -> bool:
    """tiktoken files are lines of base64 and a number; SentencePiece files are binary."""
    with file.open("rb") as opened:
        start = opened.read(1024)
    return start.isascii() and b" " in start and not any(byte < 9 for byte in start)


@contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging as theirs

    before = theirs.get_verbosity()
    theirs.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        theirs.set_verbosity(before)


def _missing(folder: Path, kind: str | None, library: str) -> TokenizerError:
    return TokenizerError(f"a tokenizer of class {kind} needs {library}", file=folder, hint=EXTRA)


def _inexact(folder: Path, kind: str | None) -> TokenizerError:
    return TokenizerError(
        "no exact tokenizer can be made of these files", file=folder,
        expected="tokenizer.json, or a class that transformers has",
        found="no tokenizer_class" if kind is None else kind, hint=_SAVE,
    )  # fmt: skip
