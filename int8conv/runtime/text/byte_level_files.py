"""Tokenizers stored as ``vocab.json`` and ``merges.txt``, of classes that are fully defined by these two files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Regex
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.processors import TemplateProcessing

from ...errors import TokenizerError
from ...formats.json_file import read_bounded, read_json
from .token_settings import CONFIG_FILE, AddedSpec, TokenSettings

VOCAB_FILE: Final = "vocab.json"
MERGES_FILE: Final = "merges.txt"
MOST_BYTES: Final = 256 << 20
"""Largest size of a tokenizer file; the largest ones take 40 MB."""
_END: Final = "<|endoftext|>"
_QWEN2_WORDS: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class _Kind:
    words: str | None
    """Pattern of a word; None: that of GPT-2."""
    nfc: bool
    defaults: Mapping[str, str]
    """Special tokens if no file names them."""


_NAMES: Final = ("unk_token", "bos_token", "eos_token")
_GPT2: Final = _Kind(None, nfc=False, defaults=dict.fromkeys(_NAMES, _END))
_KINDS: Final = {
    "GPT2Tokenizer": _GPT2,
    "CodeGenTokenizer": _GPT2,
    "GPTNeoXTokenizer": _Kind(None, nfc=True, defaults={**_GPT2.defaults, "pad_token": "<|padding|>"}),
    "Qwen2Tokenizer": _Kind(_QWEN2_WORDS, nfc=True, defaults=dict.fromkeys(("unk_token", "eos_token", "pad_token"), _END)),
}  # fmt: skip
"""By name of the transformers class; the rules are those of ``transformers/models/*/tokenization_*.py``."""
_OF_MODELS: Final = {
    "GPT2Tokenizer": "codegen gpt2 gpt_bigcode gpt_neo gptj opt phi starcoder2",
    "GPTNeoXTokenizer": "gpt_neox",
    "Qwen2Tokenizer": "qwen2 qwen2_5_vl qwen2_moe qwen2_vl qwen3 qwen3_moe qwen3_next qwen3_vl qwen3_vl_moe",
}
"""Class -> the ``model_type`` of models that use it if no file names a class."""


def kind_of(settings: TokenSettings) -> str | None:
    """The class named by the files or implied by the model; None if unknown."""
    if settings.kind is not None:
        return settings.kind
    model = settings.model_type
    return next((kind for kind, models in _OF_MODELS.items() if model in models.split()), model)


def is_known(kind: str | None) -> bool:
    """Whether ``build`` is exact for a class; without a name the two files are assumed to be GPT-2's."""
    return kind is None or kind in _KINDS


def build(folder: Path, settings: TokenSettings) -> RustTokenizer:
    """Build a tokenizer from ``vocab.json`` and ``merges.txt``.

    Raises:
        TokenizerError: the files contradict each other.
        ValueError: a file is malformed.
    """
    kind = _KINDS[kind_of(settings) or "GPT2Tokenizer"]
    vocab = _with_added(read_json(folder / VOCAB_FILE), settings, folder)
    tokenizer = RustTokenizer(BPE(vocab, _merges(folder / MERGES_FILE)))
    prefix = bool(settings.values.get("add_prefix_space"))
    if kind.words is None:
        tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=prefix)
    else:
        words = Split(Regex(kind.words), behavior="isolated", invert=False)
        tokenizer.pre_tokenizer = Sequence(
            [words, ByteLevel(add_prefix_space=prefix, use_regex=False)]
        )
    if kind.nfc:
        tokenizer.normalizer = NFC()
    tokenizer.decoder = ByteLevelDecoder()
    named = add_tokens(tokenizer, settings, kind.defaults)
    _surround(tokenizer, *(
        named[name] if settings.values.get(f"add_{name}") and name in named else None
        for name in ("bos_token", "eos_token")
    ))  # fmt: skip
    return tokenizer


def add_tokens(
    tokenizer: RustTokenizer, settings: TokenSettings, defaults: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Add the tokens that only the settings have, as transformers does; returns the special tokens by name."""
    default = {n: AddedSpec(text) for n, text in (defaults or {}).items() if n not in settings.values}  # fmt: skip
    named = default | dict(settings.named)
    there = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    missing = dict[str, AddedSpec]()
    for spec in (*dict(sorted(settings.added.items())).values(), *named.values(), *settings.extra):
        if spec.content not in there:
            missing.setdefault(spec.content, spec)
    tokenizer.add_tokens([_added_token(spec) for spec in missing.values()])
    return {name: spec.content for name, spec in named.items()}


def _added_token(spec: AddedSpec) -> AddedToken:
    return AddedToken(**{name: value for name, value in asdict(spec).items() if value is not None})


def _surround(tokenizer: RustTokenizer, first: str | None, last: str | None) -> None:
    tokens = [token for token in (first, last) if token]
    if not tokens:
        return
    template = " ".join([*([f"{first}:0"] if first else []), "$A:0", *([f"{last}:0"] if last else [])])  # fmt: skip
    tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[(token, tokenizer.token_to_id(token)) for token in tokens]
    )


def _merges(file: Path) -> list[tuple[str, str]]:
    lines = read_bounded(file, MOST_BYTES).decode("utf-8").split("\n")
    stripped = [line.removesuffix("\r") for line in lines]
    pairs = [line.split(" ") for line in stripped if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError("merges.txt has a line that is not a pair")
    return [(one, other) for one, other in pairs]


def _with_added(vocab: dict[str, Any], settings: TokenSettings, folder: Path) -> dict[str, Any]:
    """The vocabulary with the added tokens at the ids that the model has learned, even if there are gaps."""
    for number, spec in settings.added.items():
        known = vocab.setdefault(spec.content, number)
        if known != number:
            raise TokenizerError(
                f"token '{spec.content}'", file=folder, expected=f"id {known}, as in {VOCAB_FILE}",
                found=f"id {number} in {CONFIG_FILE}",
            )  # fmt: skip
    return vocab
