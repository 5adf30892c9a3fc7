"""The instructions of a pickle: those of tensors work, whatever else is asked for is refused before it costs anything."""

from __future__ import annotations

import pickle
import tracemalloc
from typing import Any

import pytest

from int8conv.formats.source.pickle_machine import MOST_BYTES, MOST_INSTRUCTIONS, run_pickle


def run(data: bytes) -> object:
    known: dict[str, object] = {"a.pair": lambda arguments: ("pair", *arguments), "a.value": 7}
    return run_pickle(data, known, lambda arguments: ("persistent", *arguments))


VALUE: dict[str, Any] = {
    "text": "ä" * 300, "one": (1,), "two": (1, -2), "three": (255, 65535, 2**31 - 1), "many": (None, True, False, (), 2.5),
    "list": ["a", "a", [], {}], "empty": {}, "long": 2**70, "negative": -(2**40),
}  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_values_are_those_of_the_standard_library(protocol: int) -> None:
    many = VALUE | {str(i): i for i in range(600)}  # the memo needs far places
    assert run(pickle.dumps(many, protocol)) == many


def test_calls_names_and_persistent_ids_go_to_the_caller() -> None:
    assert run(b"ca\npair\nK\x01K\x02\x86R.") == ("pair", 1, 2)
    assert run(b"\x8c\x01a\x8c\x05value\x93.") == 7
    assert run(b"K\x05Q.") == ("persistent", 5)
    assert run(b"}(X\x01\x00\x00\x00aK\x01u}b.") == {"a": 1}


DEEP = b"K\x00" + b"\x86".join([b"q\x00h\x00"] * 60) + b"\x86"
"""A tuple of two that are the same tuple of two, and so on: its hash would take 2^60 steps."""


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", "it asks for os.system"),
        (b"\x8c\x08builtins\x8c\x09bytearray\x93\x8a\x05\x00\x00\x00\x80\x00\x85R.", "builtins.bytearray"),
        (b"\x8e" + (1 << 62).to_bytes(8, "little") + b".", "instruction 0x8e"),  # BINBYTES8
        (b"\x96" + (1 << 31).to_bytes(8, "little") + b".", "instruction 0x96"),  # BYTEARRAY8
        (b"\x8b" + (1 << 30).to_bytes(4, "little") + b".", "instruction 0x8b"),  # LONG4
        (b"\x8d" + (1 << 62).to_bytes(8, "little") + b"a.", "malformed"),  # BINUNICODE8
        (b"X\xff\xff\xff\xffa.", "malformed"),
        (b"X\x03\x00\x00\x00\xed\xa0\x80.", "decode"),  # half of a surrogate pair
        (b"I" + b"9" * 100_000 + b"\n.", "instruction 0x49"),
        (b"j\xff\xff\xff\xff.", "malformed"),
        (b"h\x00.", "malformed"),
        (b"", "malformed"),
        (b"N", "malformed"),
        (b".", "malformed"),
        (b"(.", "malformed"),
        (b"K\x01(\x85.", "malformed"),
        (b"cos", "malformed"),
        (b"ca\nvalue\n)R.", "malformed call"),
        (b"ca\npair\nK\x01R.", "malformed call"),
        (b"K\x01X\x01\x00\x00\x00aK\x01s.", "malformed"),
        (b"}(K\x01u.", "keys that are not text"),
        (b"}" + DEEP + b"K\x01s.", "keys that are not text"),
        (b"\x80\x02" * MOST_INSTRUCTIONS + b"N.", "instructions"),
        (b"N" * MOST_BYTES + b".", "bytes"),
    ],
    ids=range(24),
)  # fmt: skip
def test_what_a_checkpoint_does_not_need_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        run(data)


def test_a_far_place_of_the_memo_takes_no_memory() -> None:
    tracemalloc.start()
    try:
        assert run(b"Nr\xff\xff\xff\xffj\xff\xff\xff\xff.") is None
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
