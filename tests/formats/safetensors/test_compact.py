"""Headers as writers write them are read without a JSON parser: the same results, and nothing wrong is taken."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from int8conv.errors import SafetensorsError
from int8conv.formats.safetensors import compact, header
from int8conv.formats.safetensors.compact import Entries, TensorInfo, read_compact
from int8conv.formats.safetensors.header import Header, parse_header

A = '"a":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]}'
B = '"b":{"dtype":"F32","shape":[],"data_offsets":[12,16]}'
META = '"__metadata__":{"format":"pt"}'
FOUND = {"a": TensorInfo("a", "F16", (2, 3), 0, 12), "b": TensorInfo("b", "F32", (), 12, 16)}


@pytest.mark.parametrize(
    ("text", "metadata"),
    [
        (f"{{{A},{B}}}", {}),
        (f"{{{A}, {B}}}    ", {}),
        (f"{{{META},{A},{B}}}", {"format": "pt"}),
        (f"{{{A},{B},{META}}}  ", {"format": "pt"}),
        (json.dumps(json.loads(f"{{{META},{A},{B}}}")), {"format": "pt"}),
        (f'{{"__metadata__":null,{A},{B}}}', None),
        (f'{{"__metadata__":{{"x":"\\"y\\":{{"}},{A},{B}}}', {"x": '"y":{'}),
    ],
)
def test_what_writers_write(text: str, metadata: Any) -> None:
    assert read_compact(text) == Entries(FOUND, metadata)


def test_files_of_the_library_and_names_with_escapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = {f'ä "{i}" \\ \t {"x" * i}': np.zeros((i % 5, 3), np.float16) for i in range(300)}
    save_file(arrays, tmp_path / "x.safetensors", {"a": "},{"})
    monkeypatch.setattr(header, "_read_any", None)
    found = header.read_header(tmp_path / "x.safetensors")
    assert {n: t.shape for n, t in found.tensors.items()} == {n: a.shape for n, a in arrays.items()}
    assert found.metadata == {"a": "},{"}
    many = [TensorInfo(f"tensor.{i}", "U8", (i % 3,), 0, 0) for i in range(2000)]
    position = 0
    for i, t in enumerate(many):
        many[i] = t._replace(begin=position, end=position + t.shape[0])
        position += t.shape[0]
    built = header.build_header(many, {"b": "c"}, alignment=64)
    again = parse_header(built[8:], payload_bytes=position, file="x")
    assert list(again.tensors.values()) == many


OTHERS = [
    f"{{{B},{A}}}", f"{{{A},{A}}}", f"{{{A}{B}}}", f"{{{A},,{B}}}", f"{{{A},{B},}}", f"{{{A},{B}", f"{{{A},{B}}}}}",
    f"{{{META},{A},{B},{META}}}", f"{{{A},{META},{B}}}", f"{{{META}{A},{B}}}", f'{{"__metadata__":{{{A},{B}}}',
    f'{{"__metadata__":{{{A},{B}}}}}', f'{{"x":{{{A},{B}}}}}', f"{{{META}}}", "{}", "{", f'{{"__metadata__":{{"a":1,"a":2}},{A},{B}}}',
    f"[{A},{B}]", f"{{{A},{B}}}x", f"{{{A},{B}}}\n", f'{{{A},{B},"c":1}}', f'{{"c":1,{A},{B}}}',
    *(f"{{{A.replace(*change)},{B}}}" for change in (
        ("[0,12]", "[0,13]"), ("[0,12]", "[00,12]"), ("[0,12]", "[0,012]"), ("[0,12]", "[-0,12]"), ("[0,12]", "[0,12.0]"), ("[0,12]", "[1,13]"),
        ("[0,12]", "[0,99999999999999999999]"), ("[2,3]", "[2,03]"), ("[2,3]", "[2,3,]"), ("[2,3]", "[2 3]"), ("[2,3]", "[ 2 , 3]"), ("[2,3]", "[,]"),
        ("[2,3]", "[2,4]"), ("[2,3]", "[4294967296,4294967296,6]"), ("[2,3]", "[" + "1," * 600 + "6]"), ("[2,3]", "[99999999999999999999,0]"),
        ("F16", "F17"), ("F16", "F4"), ('"a"', '"__metadata__"'), ('"a"', '"\\ud800"'), ('"a"', '"\\x"'), ('"a"', '"\t"'), ('"a"', '"b"'),
        ('"a"', '"},"'), ('"a"', '"\\u0062"'), ('"shape":[2,3],', ""), ("dtype", "dtypes"), (":[0", ":\n[0"),
    )),
]  # fmt: skip


@pytest.mark.parametrize("text", OTHERS)
def test_anything_else_is_as_the_parser_has_it(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcome(text) == slow_outcome(text, monkeypatch)


def test_mutations_are_as_the_parser_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, taken = random.Random(5), 0
    for _ in range(1000):
        text = list(f"{{{META},{A}, {B}}}")
        text[rng.randrange(1, len(text))] = rng.choice('"{}[]:,0123456789 \\aFx')
        mutated = "".join(text)
        taken += read_compact(mutated) is not None
        assert outcome(mutated) == slow_outcome(mutated, monkeypatch)
    assert taken > 50


def outcome(text: str) -> object:
    try:
        return parse_header(text.encode(), payload_bytes=16, file="x")
    except SafetensorsError as error:
        return type(error), str(error)


def slow_outcome(text: str, monkeypatch: pytest.MonkeyPatch) -> object:
    with monkeypatch.context() as patch:
        patch.setattr(header, "read_compact", lambda _: None)
        return outcome(text)


def test_a_truncated_file_is_told_by_the_first_tensor_that_passes_its_end() -> None:
    with pytest.raises(
        SafetensorsError, match="'a': offsets extend past the end of the file: expected at least 12"
    ):
        parse_header(f"{{{A},{B}}}".encode(), payload_bytes=5, file="x")  # fmt: skip


def test_values_that_no_tensor_needs_are_not_made() -> None:
    """A hundred million bytes of empty lists would take gigabytes."""
    with pytest.raises(SafetensorsError, match="at most 8,388,608 are allowed"):
        parse_header(b'{"a":[' + b"[]," * (5 << 20) + b"0]}", payload_bytes=0, file="x")


def test_text_without_entries_is_given_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search for entries takes the square of such a text."""
    searched: list[int] = []

    class Counting:
        def split(self, text: str) -> list[str]:
            searched.append(len(text))
            return [text]

    monkeypatch.setattr(compact, "_ENTRY", Counting())
    assert read_compact('{"' + '\\"' * 100_000 + '":1}') is None
    assert read_compact("{" + '"x":"},' * 100_000) is None
    assert sum(searched) < 1 << 15
    assert isinstance(parse_header(b"{}", payload_bytes=0, file="x"), Header)
