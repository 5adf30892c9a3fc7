"""Settings of a tokenizer apart from the vocabulary: ``tokenizer_config.json`` and the files of older releases.

Precedence is as in transformers: ``special_tokens_map.json`` and ``added_tokens.json`` are read only if
``tokenizer_config.json`` has no ``added_tokens_decoder``, and the first of them then takes precedence over the config.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ...errors import JsonFileError
from ...formats.json_file import read_optional_json

CONFIG_FILE: Final = "tokenizer_config.json"
SPECIAL_FILE: Final = "special_tokens_map.json"
ADDED_FILE: Final = "added_tokens.json"
_FLAGS: Final = ("lstrip", "rstrip", "normalized", "single_word", "special")


@dataclass(frozen=True)
class AddedSpec:
    """An added token; the flags are those of ``tokenizers.AddedToken``, None if not set."""

    content: str
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool | None = None
    single_word: bool = False
    special: bool = True


@dataclass(frozen=True)
class TokenSettings:
    """Created by ``read_token_settings``."""

    values: Mapping[str, Any]  # a config may hold anything
    """From the config and, if it is read, ``special_tokens_map.json``."""
    kind: str | None
    """Name of the tokenizer's class without ``Fast``; None if no file names it."""
    model_type: str | None
    named: Mapping[str, AddedSpec]
    """Special tokens with names, such as ``eos_token``."""
    extra: tuple[AddedSpec, ...]
    """Special tokens without names."""
    added: Mapping[int, AddedSpec]
    """By id."""

    @property
    def texts(self) -> dict[str, str]:
        """The text of each named special token."""
        return {name: token.content for name, token in self.named.items()}


def read_token_settings(folder: Path) -> TokenSettings:
    """Raises:
    JsonFileError: a file or one of its tokens is malformed.
    """
    values = read_optional_json(folder / CONFIG_FILE)
    listed = values.get("added_tokens_decoder")
    if listed is None:
        values = values | read_optional_json(folder / SPECIAL_FILE)
    config = read_optional_json(folder / "config.json")
    kind = values.get("tokenizer_class") or config.get("tokenizer_class")
    named = dict(_named(values))
    extra = values.get("extra_special_tokens") or values.get("additional_special_tokens") or []
    if isinstance(extra, dict):
        named |= {name: spec for name, token in extra.items() if (spec := _spec(token)) is not None}
        extra = []
    if not isinstance(extra, list):
        raise _malformed(folder / CONFIG_FILE, "extra_special_tokens", "a list of tokens", extra)
    others = tuple(spec for token in extra if (spec := _spec(token)) is not None)
    return TokenSettings(
        values, kind.removesuffix("Fast") if isinstance(kind, str) else None,
        config.get("model_type") if isinstance(config.get("model_type"), str) else None,
        named, others, _listed(folder, listed, {t.content for t in (*named.values(), *others)}),
    )  # fmt: skip


def _named(values: Mapping[str, Any]) -> Iterator[tuple[str, AddedSpec]]:
    for key, value in values.items():
        spec = _spec(value) if key.endswith("_token") else None
        if spec is not None:
            yield key, spec


def _spec(value: object) -> AddedSpec | None:
    """From a token's text, or an object with ``content`` and flags; None for anything else."""
    if isinstance(value, str):
        return AddedSpec(value) if value else None
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        return None
    flags = {name: value[name] for name in _FLAGS if isinstance(value.get(name), bool)}
    return AddedSpec(value["content"], **flags) if value["content"] else None


def _listed(folder: Path, listed: object, special: set[str]) -> dict[int, AddedSpec]:
    """Tokens by id, from ``added_tokens_decoder`` or else ``added_tokens.json``."""
    if listed is None:
        file = folder / ADDED_FILE
        found = read_optional_json(file)
        if not all(type(number) is int and text for text, number in found.items()):
            raise _malformed(file, "its values", "ids", found)
        return {
            number: AddedSpec(text, normalized=text not in special, special=text in special)
            for text, number in found.items()
        }
    file = folder / CONFIG_FILE
    if not isinstance(listed, dict):
        raise _malformed(file, "added_tokens_decoder", "tokens by their ids", listed)
    tokens = {}
    for number, value in listed.items():
        spec = _spec(value) if isinstance(value, dict) else None
        if spec is None or not number.isdecimal() or len(number) > 9:
            raise _malformed(file, "added_tokens_decoder", "tokens by their ids", {number: value})
        is_special = bool(value.get("special")) or spec.content in special
        tokens[int(number)] = replace(spec, special=is_special)
    return tokens


def _malformed(file: Path, key: str, expected: str, found: object) -> JsonFileError:
    return JsonFileError(f"key '{key}'", file=file, expected=expected, found=repr(found)[:60])
