"""Safetensors headers: every way in which a file can be wrong, agreement with the library, any bytes at all."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from int8conv.errors import (
    ByteCountError,
    HeaderSyntaxError,
    HeaderTooLongError,
    Int8convError,
    NotFoundError,
    OffsetError,
    SafetensorsError,
    TruncatedFileError,
    UnsupportedDtypeError,
)
from int8conv.formats.int8.folder import open_converted
from int8conv.formats.int8.layout import TensorSpec, plan_layout
from int8conv.formats.safetensors.header import MAX_HEADER_BYTES, Header, parse_header, read_header
from int8conv.formats.source.checkpoint import open_checkpoint

from ..damage import Change, Json, edit_header, read_shard, rejected, write_raw, write_shard


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A file of the library: a is F32 [2, 3], b is I8 [4], c is F16 [2]; 32 bytes of payload."""
    path = tmp_path / "good.safetensors"
    tensors: dict[str, npt.NDArray[Any]] = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array([-127, -1, 0, 127], np.int8),
        "c": np.array([0.5, -2], np.float16),
    }
    save_file(tensors, path, {"made": "by hand"})
    return path


def text_of(header: Json) -> bytes:
    return json.dumps(header).encode()


def test_a_file_of_the_library_is_read_as_the_library_reads_it(good: Path) -> None:
    header = read_header(good)
    assert header.metadata == {"made": "by hand"}
    data = good.read_bytes()
    types = {"F32": np.float32, "I8": np.int8, "F16": np.float16}
    with safe_open(good, "np") as library:
        assert set(library.keys()) == set(header.tensors)
        for info in header.tensors.values():
            stored = data[header.payload_offset + info.begin : header.payload_offset + info.end]
            array = np.frombuffer(stored, types[info.dtype]).reshape(info.shape)
            np.testing.assert_array_equal(array, library.get_tensor(info.name))


def test_tensors_come_in_the_order_of_their_offsets(good: Path) -> None:
    def reverse(header: Json) -> None:
        entries = list(header.items())[::-1]
        header.clear()
        header.update(entries)

    before = list(read_header(good).tensors)
    edit_header(good, reverse, alignment=1)
    assert list(read_header(good).tensors) == before


def test_no_tensor_at_all_is_a_valid_file(tmp_path: Path) -> None:
    write_raw(tmp_path / "empty.safetensors", b"{}", b"")
    header = read_header(tmp_path / "empty.safetensors")
    assert (header.tensors, header.metadata, header.payload_offset) == ({}, {}, 10)


def test_scalars_and_empty_tensors_are_valid(tmp_path: Path) -> None:
    path = tmp_path / "edge.safetensors"
    save_file({"none": np.empty((0, 7), np.float32), "one": np.array(2, np.int64)}, path)
    tensors = read_header(path).tensors
    assert tensors["none"].shape == (0, 7)
    assert tensors["none"].nbytes == 0
    assert tensors["one"].shape == ()
    assert tensors["one"].nbytes == 8


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with rejected(NotFoundError, str(tmp_path / "no.safetensors")):
        read_header(tmp_path / "no.safetensors")


@pytest.mark.rule("H1")
@pytest.mark.parametrize("size", range(8))
def test_fewer_than_8_bytes(good: Path, size: int) -> None:
    good.write_bytes(good.read_bytes()[:size])
    with rejected(TruncatedFileError, str(good), f"found {size}"):
        read_header(good)


@pytest.mark.rule("H1")
@pytest.mark.parametrize("kept", [8, 9, -1])
def test_a_header_that_passes_the_end_of_the_file(good: Path, kept: int) -> None:
    header_end = read_header(good).payload_offset
    good.write_bytes(good.read_bytes()[: kept if kept > 0 else header_end + kept])
    with rejected(TruncatedFileError, str(good), f"expected {header_end} bytes"):
        read_header(good)


@pytest.mark.rule("H2")
@pytest.mark.parametrize("length", [MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1])
def test_a_header_length_past_the_limit(good: Path, length: int) -> None:
    good.write_bytes(length.to_bytes(8, "little") + good.read_bytes()[8:])
    with rejected(HeaderTooLongError, str(good), str(length)):
        read_header(good)


@pytest.mark.rule("H2")
def test_the_limit_holds_for_a_file_that_is_long_enough(good: Path) -> None:
    with good.open("r+b") as file:
        file.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(2 * MAX_HEADER_BYTES)  # sparse
    with rejected(HeaderTooLongError, str(good)):
        read_header(good)


@pytest.mark.rule("H3")
@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" {}",
        b"\n{}",
        b"[]",
        b"null",
        b"\xef\xbb\xbf{}",
        b"{",
        b"{}}",
        b"{} x",
        b"{}\0\0",
        b"{'a': 1}",
        b'{"\xff": {}}',
        b'{"a": {"dtype": "I8", "shape": [0], "data_offsets": [0, 0]},}',
        b'{"\\ud800": {"dtype": "I8", "shape": [0], "data_offsets": [0, 0]}}',
        b'{"a":' * 100_000,
        b"PK\x03\x04",
    ],
    ids=lambda text: repr(text[:12]),
)
def test_a_header_that_is_not_a_json_object(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "bad.safetensors"
    write_raw(path, text, b"")
    with rejected(HeaderSyntaxError, str(path)):
        read_header(path)


@pytest.mark.rule("H3")
def test_spaces_after_the_header_are_allowed(good: Path) -> None:
    header, payload = read_shard(good)
    before = read_header(good).tensors
    write_raw(good, text_of(header) + b" " * 1000, payload)
    assert read_header(good).tensors == before


@pytest.mark.rule("H4")
def test_a_name_that_occurs_twice(good: Path) -> None:
    header, payload = read_shard(good)
    again = json.dumps({"b": header["b"]})[1:]
    write_raw(good, text_of(header)[:-1] + b", " + again.encode(), payload)
    with rejected(HeaderSyntaxError, str(good), "'b'", "twice"):
        read_header(good)


@pytest.mark.rule("H4")
def test_a_field_that_occurs_twice_in_an_entry(good: Path) -> None:
    header, payload = read_shard(good)
    text = text_of(header).replace(b'"dtype": "I8"', b'"dtype": "I8", "dtype": "I8"')
    write_raw(good, text, payload)
    with rejected(HeaderSyntaxError, str(good), "'dtype'"):
        read_header(good)


def edit(**fields: object) -> Change:
    """Fields of tensor b to change; None removes one."""

    def change(header: Json) -> None:
        for name, value in fields.items():
            if value is None:
                del header["b"][name]
            else:
                header["b"][name] = value

    return change


def replace(value: object) -> Change:
    return lambda header: header.update(b=value)


def shift(name: str, begin: int, end: int) -> Change:
    """Move a tensor's offsets."""

    def change(header: Json) -> None:
        offsets = header[name]["data_offsets"]
        header[name]["data_offsets"] = [offsets[0] + begin, offsets[1] + end]

    return change


@pytest.mark.rule("H5")
@pytest.mark.parametrize(
    "change",
    [
        edit(dtype=None), edit(shape=None), edit(data_offsets=None), edit(strides=[1]),
        replace([]), replace(1), replace("I8"), replace({}),
        edit(shape=4), edit(shape="4"), edit(shape={"0": 4}), edit(shape=[4.0]), edit(shape=["4"]),
        edit(shape=[-4]), edit(shape=[True, 4]), edit(shape=[[4]]), edit(shape=[2**63]),
        edit(shape=[10**4000]), edit(shape=[float("nan")]), edit(shape=[float("inf")]),
        edit(data_offsets=[0]), edit(data_offsets=[0, 4, 8]), edit(data_offsets=4),
        edit(data_offsets=[-4, 0]), edit(data_offsets=[0.0, 4.0]), edit(data_offsets=["0", "4"]),
        edit(data_offsets=[False, 4]), edit(data_offsets=[0, 2**64]),
    ],
)  # fmt: skip
def test_a_malformed_entry(good: Path, change: Change) -> None:
    edit_header(good, change, alignment=1)
    with rejected(HeaderSyntaxError, str(good), "'b'"):
        read_header(good)


@pytest.mark.rule("H6")
@pytest.mark.parametrize("dtype", ["F4", "i8", "", "int8", "BF8", 8, ["I8"], {"I8": 1}, False])
def test_an_unknown_dtype(good: Path, dtype: object) -> None:
    edit_header(good, edit(dtype=dtype), alignment=1)
    with rejected(UnsupportedDtypeError, str(good), "'b'", str(dtype)):
        read_header(good)


@pytest.mark.rule("H7")
@pytest.mark.parametrize("shape", [[3], [5], [2, 3], [0], [4, 0], [4, 1, 2]])
def test_a_shape_of_another_number_of_bytes(good: Path, shape: list[int]) -> None:
    edit_header(good, edit(shape=shape), alignment=1)
    with rejected(ByteCountError, str(good), "'b'", "found 4"):
        read_header(good)


@pytest.mark.rule("H7")
@pytest.mark.parametrize(
    "shape",
    [[2**32, 2**31], [2**63 - 1, 2**63 - 1], [2**62] * 1000, [2**32, 2**32, 4]],
    ids=["2^63", "2^126", "a thousand axes", "4 in 64-bit arithmetic"],
)
def test_a_shape_past_2_63(good: Path, shape: list[int]) -> None:
    edit_header(good, edit(shape=shape), alignment=1)
    with rejected(ByteCountError, str(good), "'b'", "2^63 - 1"):
        read_header(good)


@pytest.mark.rule("H7")
def test_one_axis_of_0_makes_any_shape_0_bytes(good: Path) -> None:
    edit_header(good, edit(shape=[2**62, 2**62, 0]), alignment=1)
    with rejected(ByteCountError, str(good), "'b'", "expected 0 bytes"):
        read_header(good)


@pytest.mark.rule("H8")
@pytest.mark.parametrize("lost", [1, 4, 31])
def test_a_truncated_payload(good: Path, lost: int) -> None:
    last = list(read_header(good).tensors)[-1 if lost <= 4 else 0]
    good.write_bytes(good.read_bytes()[:-lost])
    with rejected(TruncatedFileError, str(good), f"'{last}'"):
        read_header(good)


@pytest.mark.rule("H8")
def test_an_offset_past_the_end_of_the_payload(good: Path) -> None:
    last = list(read_header(good).tensors)[-1]
    edit_header(good, shift(last, 1000, 1000), alignment=1)
    with rejected(TruncatedFileError, str(good), f"'{last}'"):
        read_header(good)


@pytest.mark.rule("H8")
def test_offsets_that_run_backwards(good: Path) -> None:
    edit_header(good, edit(data_offsets=[28, 24]), alignment=1)
    with rejected(OffsetError, str(good), "'b'", "backwards"):
        read_header(good)


def test_the_order_of_the_small_file(good: Path) -> None:
    """What the next tests move."""
    offsets = {name: (t.begin, t.end) for name, t in read_header(good).tensors.items()}
    assert offsets == {"a": (0, 24), "c": (24, 28), "b": (28, 32)}


@pytest.mark.rule("H9")
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (shift("c", -1, -1), "'c'"),
        (shift("b", -4, -4), "'b'"),
        (shift("b", -28, -28), "'a'"),
        (shift("a", 1, 1), "'a'"),
        (lambda header: header.pop("a"), "'c'"),
        (lambda header: header.pop("c"), "'b'"),
        (lambda header: header.pop("b"), "payload"),
    ],
    ids=["overlap by 1", "same place", "within", "late start", "no first", "hole", "no last"],
)
def test_overlaps_and_bytes_of_no_tensor(good: Path, change: Change, named: str) -> None:
    edit_header(good, change, alignment=1)
    with rejected(OffsetError, str(good), named):
        read_header(good)


@pytest.mark.rule("H9")
def test_bytes_after_the_last_tensor(good: Path) -> None:
    with good.open("ab") as file:
        file.write(b"\0")
    with rejected(OffsetError, str(good), "expected 32 bytes", "found 33"):
        read_header(good)


@pytest.mark.rule("H10")
@pytest.mark.parametrize("metadata", [[], "pt", 1, {"format": 1}, {"a": "b", "c": None}])
def test_metadata_that_is_not_an_object_of_strings(good: Path, metadata: object) -> None:
    edit_header(good, lambda header: header.update(__metadata__=metadata), alignment=1)
    with rejected(HeaderSyntaxError, str(good), "__metadata__"):
        read_header(good)


def test_metadata_that_is_null_is_none(good: Path) -> None:
    before = read_header(good)
    edit_header(good, lambda header: header.update(__metadata__=None), alignment=1)
    after = read_header(good)
    assert after.tensors == before.tensors
    assert after.metadata == {}


def a_tensor(header: Json) -> tuple[str, Any]:
    return next((name, entry) for name, entry in header.items() if name != "__metadata__")


DAMAGES = [
    pytest.param(
        lambda h: a_tensor(h)[1].pop("shape"), HeaderSyntaxError, marks=pytest.mark.rule("H5")
    ),
    pytest.param(
        lambda h: a_tensor(h)[1].update(dtype="Q4"),
        UnsupportedDtypeError,
        marks=pytest.mark.rule("H6"),
    ),
    pytest.param(
        lambda h: a_tensor(h)[1]["shape"].append(2), ByteCountError, marks=pytest.mark.rule("H7")
    ),
    pytest.param(
        lambda h: a_tensor(h)[1]["data_offsets"].reverse(),
        OffsetError,
        marks=pytest.mark.rule("H8"),
    ),
    pytest.param(lambda h: h.pop(a_tensor(h)[0]), OffsetError, marks=pytest.mark.rule("H9")),
    pytest.param(
        lambda h: h.update(__metadata__={"format": 1}),
        HeaderSyntaxError,
        marks=pytest.mark.rule("H10"),
    ),
]


@pytest.mark.parametrize(("change", "error"), DAMAGES)
def test_a_source_is_held_to_the_same_rules(
    source: Path, change: Change, error: type[Int8convError]
) -> None:
    edit_header(source / "model.safetensors", change)
    with rejected(error, str(source / "model.safetensors")):
        open_checkpoint(source)


@pytest.mark.parametrize(("change", "error"), DAMAGES)
def test_a_shard_of_a_converted_folder_is_held_to_them(
    converted: Path, change: Change, error: type[Int8convError]
) -> None:
    shard = converted / "model-00001-of-00001.safetensors"
    edit_header(shard, change)
    with rejected(error, str(shard)):
        open_converted(converted)


def test_a_length_in_the_file_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "claims.safetensors"
    entry = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
    write_shard(path, {"a": entry}, b"", alignment=1)
    claims = path.read_bytes()
    tracemalloc.start()
    try:
        with rejected(TruncatedFileError, str(path), "'a'"):
            read_header(path)
        path.write_bytes(MAX_HEADER_BYTES.to_bytes(8, "little") + claims[8:])
        with rejected(TruncatedFileError, str(path)):
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def tiny_file() -> bytes:
    """A valid file with every kind of entry, small enough that a random byte often hits a number."""
    runs = [
        (TensorSpec("l.weight", "I8", (3, 5, 1)), TensorSpec("m.weight", "I8", (2, 5, 1))),
        (TensorSpec("l.weight_scale", "F32", (3,)),),
        (TensorSpec("kept", "BF16", (2, 2)),),
    ]
    (layout,) = plan_layout([tuple(runs)], max_shard_bytes=1 << 20)
    text = layout.header[8:].rstrip()
    return len(text).to_bytes(8, "little") + text + bytes(layout.tensors[-1].end)


def outcome(path: Path) -> Header | SafetensorsError:
    """What reading a file comes to; any other exception is a failure of the test."""
    try:
        return read_header(path)
    except SafetensorsError as error:
        assert type(error) is not SafetensorsError
        assert str(path) in str(error)
        return error


def test_three_thousand_mutations_give_a_header_or_a_named_error(tmp_path: Path) -> None:
    good = tiny_file()
    header_end = 8 + int.from_bytes(good[:8], "little")
    choose = random.Random(0)
    path = tmp_path / "mutated.safetensors"
    path.write_bytes(good)
    assert isinstance(outcome(path), Header)
    telling = b'"{}[]:,0123456789-.eE\\u \0\x7f\xff'
    seen: set[str] = set()
    tracemalloc.start()
    try:
        for _ in range(3000):
            data = bytearray(good)
            for _ in range(choose.choice((1, 1, 1, 2, 4))):
                position = choose.randrange(header_end)
                kind = choose.randrange(4)
                if kind == 0:
                    data[position] = choose.randrange(256)
                elif kind == 1:
                    data[position] = choose.choice(telling)
                elif kind == 2:
                    del data[position]
                else:
                    data.insert(position, choose.choice(telling))
            path.write_bytes(data)
            seen.add(type(outcome(path)).__name__)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert seen >= {"Header", "HeaderSyntaxError", "TruncatedFileError", "HeaderTooLongError"}
    assert seen >= {"ByteCountError", "OffsetError", "UnsupportedDtypeError"}


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "a"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(JSON_VALUES, st.booleans(), st.integers(0, 64))
def test_any_json_gives_a_header_or_a_named_error(
    value: object, as_entry: bool, payload_bytes: int
) -> None:
    text = json.dumps({"x": value} if as_entry else value).encode()
    try:
        parse_header(text, payload_bytes=payload_bytes, file="any.safetensors")
    except SafetensorsError as error:
        assert "any.safetensors" in str(error)


def test_every_truncation_is_rejected(tmp_path: Path, good: Path) -> None:
    data = good.read_bytes()
    path = tmp_path / "cut.safetensors"
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with rejected(TruncatedFileError, str(path)):
            read_header(path)


@pytest.mark.parametrize(("change", "error"), DAMAGES)
def test_the_library_refuses_them_too(
    good: Path, change: Change, error: type[Int8convError]
) -> None:
    """So no file that others read is refused here."""
    edit_header(good, change, alignment=1)
    with pytest.raises(SafetensorError), safe_open(good, "np"):
        pass
