"""The vocabulary of a ``tokenizer.json`` as llama.cpp takes it: byte-level BPE, or BPE with byte fallback as SentencePiece makes it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ...errors import NotFoundError, TokenizerError
from ...formats.json_file import Limit, read_json

TOKENIZER_FILE: Final = "tokenizer.json"
_LIMIT: Final = Limit(nbytes=256 << 20, values=50_000_000)
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)
_BYTE_TOKEN: Final = re.compile(r"<0x[0-9A-F]{2}>")
_NEVER: Final = -1e6
"""Score of a token that no merge makes."""

_CONTRACTIONS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST: Final = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS: Final = {
    f"{_CONTRACTIONS}\\p{{N}}{{1,3}}{_REST}": "llama-bpe",
    f"{_CONTRACTIONS}\\p{{N}}{_REST}": "qwen2",
}
"""Expressions that cut a text into words -> llama.cpp's names for them."""


@dataclass(frozen=True)
class Vocabulary:
    """What ``tokenizer.ggml.*`` has, apart from special ids, merges and the chat template."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    """Of the SentencePiece kind."""
    space_first: bool | None
    """Of the SentencePiece kind: whether a text begins with a space."""
    notes: tuple[str, ...] = ()

    @property
    def has_merges(self) -> bool:
        """Whether llama.cpp reads merges rather than scores."""
        return self.scores is None


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
    """The vocabulary of a checkpoint, filled up with unused tokens to ``size``.

    Raises:
        NotFoundError: there is no ``tokenizer.json``.
        TokenizerError: llama.cpp has no tokenizer like it, or it has more tokens than the model.
    """
    file = folder / TOKENIZER_FILE
    if not file.is_file():
        raise NotFoundError(f"GGUF needs a {TOKENIZER_FILE}", file=folder,
                            hint="AutoTokenizer.from_pretrained(...).save_pretrained(...) writes one")  # fmt: skip
    content = read_json(file, limit=_LIMIT)
    model = content.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(model, dict) or model.get("type") != "BPE" or not isinstance(vocab, dict):
        kind = model.get("type") if isinstance(model, dict) else model
        raise _unknown(file, "a BPE model", kind)
    tokens, types = _tokens(vocab, content.get("added_tokens") or (), model.get("unk_token"), size, file)  # fmt: skip
    parts = list(_flat(content.get("pre_tokenizer"), "pretokenizers"))
    normalizers = list(_flat(content.get("normalizer"), "normalizers"))
    if any(part.get("type") == "ByteLevel" for part in parts):
        pre = _pre(parts, file)
        lost = [n.get("type") for n in normalizers]
        notes = tuple(f"llama.cpp does not apply the tokenizer's normalizer: {kind}" for kind in lost)  # fmt: skip
        return Vocabulary("gpt2", pre, tokens, types, None, None, notes)
    spaces = [n.get("type") for n in (*normalizers, *parts)]
    if not model.get("byte_fallback") or not {"Replace", "Metaspace"} & set(spaces):
        raise _unknown(file, "a byte-level one, or one of SentencePiece with byte fallback", spaces)
    first = "Prepend" in spaces or any(p.get("type") == "Metaspace" and p.get("prepend_scheme") != "never" for p in parts)  # fmt: skip
    scores = _scores(tokens, model.get("merges") or ())
    return Vocabulary("llama", "default", tokens, types, scores, first)


def _flat(part: object, key: str) -> Iterator[Mapping[str, Any]]:
    """The steps of a sequence, or of a single step."""
    if isinstance(part, dict):
        if isinstance(part.get(key), list):
            for each in part[key]:
                yield from _flat(each, key)
        else:
            yield part


def _pre(parts: Sequence[Mapping[str, Any]], file: Path) -> str:
    """llama.cpp's name for how a text is cut before merging."""
    first, last = parts[0], parts[-1]
    whole = last.get("type") == "ByteLevel" and not last.get("add_prefix_space")
    if whole and len(parts) == 1 and last.get("use_regex", True):
        return "gpt-2"
    if whole and len(parts) == 2 and first.get("type") == "Digits":
        if first.get("individual_digits") and last.get("use_regex", True):
            return "smollm"
    elif whole and len(parts) == 2 and first.get("type") == "Split":
        pattern = first.get("pattern")
        regex = pattern.get("Regex") if isinstance(pattern, dict) else None
        if regex in _SPLITS and first.get("behavior") == "Isolated":
            return _SPLITS[regex]
    raise _unknown(file, "words cut as by GPT-2, SmolLM, Llama 3 or Qwen 2", [p.get("type") for p in parts])  # fmt: skip


def _tokens(
    vocab: Mapping[str, Any], added: Sequence[Any], unknown: object, size: int, file: Path
) -> tuple[list[str], list[int]]:
    tokens = [f"[PAD{number}]" for number in range(size)]
    types = [_UNUSED] * size
    places = [(number, text, _NORMAL) for text, number in vocab.items()]
    for each in added:
        kind = _CONTROL if each.get("special") else _USER
        places.append((each.get("id"), each.get("content"), kind))
    for number, text, kind in places:
        if type(number) is not int or not isinstance(text, str) or not 0 <= number < size:
            raise TokenizerError("a token outside of the model's vocabulary", file=file,
                                 expected=f"0..{size - 1}", found=f"{text!r}: {number!r}")  # fmt: skip
        tokens[number], types[number] = text, kind
        if kind == _NORMAL and _BYTE_TOKEN.fullmatch(text):
            types[number] = _BYTE
        if text == unknown:
            types[number] = _UNKNOWN
    return tokens, types


def _scores(tokens: Sequence[str], merges: Sequence[Any]) -> list[float]:
    """The sooner a merge comes, the higher the score of what it makes: SentencePiece then merges in the same order."""
    found: dict[str, float] = {}
    for rank, merge in enumerate(merges):
        made = merge.replace(" ", "", 1) if isinstance(merge, str) else "".join(merge)
        found.setdefault(made, -float(rank))
    return [found.get(token, _NEVER) for token in tokens]


def _unknown(file: Path, expected: str, found: object) -> TokenizerError:
    return TokenizerError("llama.cpp has no tokenizer like this one", file=file, expected=expected, found=str(found))  # fmt: skip
