"""Read headers as written by safetensors' own writers, in a fraction of the time and memory of a JSON parser.

Such a header is one entry after the other, in the order of offsets, each with its three fields in one order: a regular
expression takes the text apart, some hundred entries at a time. What is not exactly so, or wrong in any way, is left to the parser in
``header``, whose errors say what it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from itertools import repeat
from operator import sub
from typing import Final, NamedTuple

from ..json_file import unique_fields
from .dtypes import ITEM_BYTES

METADATA: Final = "__metadata__"
MOST_PAYLOAD_BYTES: Final = 2**63 - 1

_NAME: Final = r'"([^"\\\x00-\x1f]*(?:\\.[^"\\\x00-\x1f]*)*)"'
_INTEGER: Final = r"(0|[1-9][0-9]{0,18})"
_ENTRY: Final = re.compile(
    rf'{_NAME}: ?\{{"dtype": ?"([A-Z0-9_]+)", ?"shape": ?\[([0-9, ]{{0,1000}})\], ?'
    rf'"data_offsets": ?\[{_INTEGER}, ?{_INTEGER}\]\}}'
)
_PARTS: Final = 6
"""An entry: name, dtype, shape, begin, end, and the separator before the next."""
_SEPARATORS: Final = frozenset({",", ", "})
_BLOCK: Final = 1 << 12
"""Characters at a time; in text that is no entry the search takes their square."""
_CLOSER: Final = "it takes a closer look"
_FIRST: Final = re.compile(r'\{"__metadata__": ?')
_DECODER: Final = json.JSONDecoder(object_pairs_hook=unique_fields)


class TensorInfo(NamedTuple):
    """One entry of a header; ``begin`` and ``end`` are byte offsets within the payload."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


class Entries(NamedTuple):
    """The contents of a header."""

    tensors: dict[str, TensorInfo]
    """In the order of offsets."""
    metadata: object
    """The value of ``__metadata__``, unchecked; an empty dict if absent."""


def read_compact(text: str) -> Entries | None:
    """The contents of a header whose tensors are contiguous from 0; None if it needs the full parser."""
    try:
        end = text.rindex("}") + 1  # but for the padding
        if text[end:].strip(" "):
            return None
        metadata, at = _before(text)
        tensors: dict[str, TensorInfo] = {}
        kinds = _Kinds()
        while True:
            cut = text.find("},", at + _BLOCK, end) + 1 or end
            separators = _SEPARATORS if tensors else {""}
            rest = _read_part(text[at:cut], separators, kinds, tensors)
            if cut == end:
                break
            if rest:
                return None
            at = cut
        if rest.strip(" ") != "}":
            if metadata is not None:
                return None
            metadata = _behind(rest)
    except (ValueError, RecursionError):
        return None
    if not tensors or METADATA in tensors:
        return None
    return Entries(tensors, {} if metadata is None else metadata[0])


def _read_part(
    text: str, separators: Collection[str], kinds: _Kinds, tensors: dict[str, TensorInfo]
) -> str:
    """Add the entries of a part of a header; returns the text after the last one."""
    if len(text) > 2 * _BLOCK:
        raise ValueError(_CLOSER)
    before, *parts = _ENTRY.split(text)
    if not parts:
        return before
    rest = parts.pop()
    names, begins, written = parts[0::_PARTS], parts[3::_PARTS], parts[4::_PARTS]
    if before not in separators or not _SEPARATORS.issuperset(parts[5::_PARTS]):
        raise ValueError(_CLOSER)
    position = tensors[next(reversed(tensors))].end if tensors else 0
    if int(begins[0]) != position or begins[1:] != written[:-1]:
        raise ValueError(_CLOSER)
    if "\\" in text:
        names = list(map(_unescaped, names))
    ends = list(map(int, written))
    starts = [position, *ends[:-1]]
    known = [kinds[kind] for kind in zip(parts[1::_PARTS], parts[2::_PARTS], strict=True)]
    dtypes, shapes, nbytes = zip(*known, strict=True)
    if tuple(map(sub, ends, starts)) != nbytes:
        raise ValueError(_CLOSER)
    count = len(tensors) + len(names)
    rows = zip(names, dtypes, shapes, starts, ends, strict=True)
    tensors.update(zip(names, map(tuple.__new__, repeat(TensorInfo), rows), strict=True))
    if len(tensors) != count:  # one of them twice
        raise ValueError(_CLOSER)
    return rest


class _Kinds(dict[tuple[str, str], tuple[str, tuple[int, ...], int]]):
    """Cache by dtype and shape as written: both parsed, and their size in bytes."""

    def __missing__(self, kind: tuple[str, str]) -> tuple[str, tuple[int, ...], int]:
        dtype, shape = kind[0], tuple(json.loads(f"[{kind[1]}]"))
        if dtype not in ITEM_BYTES or any(size > MOST_PAYLOAD_BYTES for size in shape):
            raise ValueError(_CLOSER)
        nbytes = bytes_within_limit(dtype, shape)
        if nbytes is None:
            raise ValueError(_CLOSER)
        self[kind] = found = (dtype, shape, nbytes)
        return found


def bytes_within_limit(dtype: str, shape: Sequence[int]) -> int | None:
    """Like ``byte_count``, but stops multiplying and returns None once past the limit."""
    if 0 in shape:
        return 0
    needed = ITEM_BYTES[dtype]
    for size in shape:
        needed *= size
        if needed > MOST_PAYLOAD_BYTES:
            return None
    return needed


def _before(text: str) -> tuple[tuple[object] | None, int]:
    """The metadata if they come before the first entry, and where that begins."""
    match = _FIRST.match(text)
    if match is None:
        return None, 1
    found, end = _DECODER.raw_decode(text, match.end())
    if text[end : end + 1] != ",":
        raise ValueError(_CLOSER)
    return (found,), end + 1 + (text[end + 1 : end + 2] == " ")


def _behind(rest: str) -> tuple[object]:
    """The metadata after the last entry."""
    if not rest.startswith(","):
        raise ValueError(_CLOSER)
    found = _DECODER.decode("{" + rest.removeprefix(","))
    if found.keys() != {METADATA}:
        raise ValueError(_CLOSER)
    return (found[METADATA],)


def _unescaped(name: str) -> str:
    found: str = json.loads(f'"{name}"')
    found.encode()  # ValueError for a lone surrogate, which is not valid text
    return found
