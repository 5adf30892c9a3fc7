"""Verification reads every byte: any flipped bit is found, and so is a number that the format forbids."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
import xxhash

from int8conv.errors import ChecksumError, ConvertedFormatError, NotFoundError, NumberError
from int8conv.formats.int8.folder import open_converted
from int8conv.formats.int8.verify import verify, verify_linear

from ..damage import (
    INDEX,
    MANIFEST,
    Json,
    edit_json,
    overwrite,
    payload_offset,
    read_shard,
    rejected,
    restate_tensor,
    shard_of,
    tensor_bytes,
    write_tensor,
)

LINEAR = "model.decoder.layers.0.fc2"
"""Has 16 outlier columns of 160, and a bias."""
FIRST = "model-00001-of-00003.safetensors"


def test_a_good_folder_passes_and_is_read_whole(converted: Path) -> None:
    opened = open_converted(converted)
    told: list[tuple[str, int, int]] = []
    listed = sum(record.bytes for record in opened.manifest.files.values())
    assert verify(opened, progress=lambda *news: told.append(news)) == listed
    assert told[-1] == ("verify", opened.checkpoint.nbytes, opened.checkpoint.nbytes)
    assert verify(converted) == listed
    on_disk = sum(path.stat().st_size for path in converted.iterdir())
    assert listed == on_disk - (converted / MANIFEST).stat().st_size


@pytest.mark.rule("M3")
@pytest.mark.parametrize(
    "tensor",
    [
        f"{LINEAR}.weight", f"{LINEAR}.weight_scale", f"{LINEAR}.outlier_weight",
        f"{LINEAR}.bias", "model.decoder.embed_tokens.weight",
        "model.decoder.final_layer_norm.bias",
    ],
)  # fmt: skip
@pytest.mark.parametrize("where", [0, -1])
def test_one_flipped_bit_of_a_tensor(small: Path, tensor: str, where: int) -> None:
    opened = open_converted(small)
    stored = opened.checkpoint.tensors[tensor]
    position = stored.offset + where % stored.nbytes
    byte = stored.file.path.read_bytes()[position]
    overwrite(stored.file.path, position, bytes([byte ^ 1]))
    with rejected(ChecksumError, str(stored.file), f"'{tensor}'"):
        verify(opened)


@pytest.mark.rule("M3")
def test_one_flipped_bit_anywhere_in_a_payload(small: Path) -> None:
    choose = random.Random(0)
    for shard in open_converted(small).checkpoint.headers:
        good = (small / shard).read_bytes()
        for _ in range(10):
            position = choose.randrange(payload_offset(small / shard), len(good))
            flipped = good[position] ^ 1 << choose.randrange(8)
            overwrite(small / shard, position, bytes([flipped]))
            with pytest.raises((ChecksumError, ConvertedFormatError), match=shard):
                verify(open_converted(small))
            overwrite(small / shard, position, good[position : position + 1])
    verify(open_converted(small))


@pytest.mark.rule("M3")
def test_another_spelling_of_the_same_header(small: Path) -> None:
    path = small / FIRST
    end = payload_offset(path)
    assert path.read_bytes()[end - 1 : end] == b" "
    overwrite(path, end - 1, b"\n")
    with rejected(ChecksumError, str(path), "expected"):
        verify(open_converted(small))


@pytest.mark.rule("M3")
@pytest.mark.parametrize("file", ["config.json", INDEX])
def test_a_small_file_that_differs(small: Path, file: str) -> None:
    text = (small / file).read_text()
    assert text.endswith("}\n")
    (small / file).write_text(text[:-1] + " ")
    with rejected(ChecksumError, str(small / file), "checksum"):
        verify(open_converted(small))


@pytest.mark.rule("M3")
def test_a_small_file_of_another_size(converted: Path) -> None:
    with (converted / "tokenizer.json").open("ab") as file:
        file.write(b"\n")
    with rejected(ChecksumError, str(converted / "tokenizer.json"), "size"):
        verify(open_converted(converted))


@pytest.mark.rule("M3")
def test_a_checksum_of_a_tensor_that_is_missing(small: Path) -> None:
    path = shard_of(small, f"{LINEAR}.bias")

    def change(manifest: Json) -> None:
        del manifest["files"][path.name]["tensors"][f"{LINEAR}.bias"]

    edit_json(small / MANIFEST, change)
    with rejected(ChecksumError, str(path), f"'{LINEAR}.bias'", "no checksum"):
        verify(open_converted(small))


@pytest.mark.rule("M3")
@pytest.mark.parametrize("file", ["config.json", INDEX])
def test_a_checksum_of_a_file_that_is_missing(small: Path, file: str) -> None:
    edit_json(small / MANIFEST, lambda manifest: manifest["files"].pop(file))
    with rejected(ChecksumError, str(small / file), "no checksum"):
        verify(open_converted(small))


@pytest.mark.rule("M3")
@pytest.mark.parametrize("checksum", ["", "0" * 32, "0" * 31, 5, None])
def test_a_wrong_checksum_of_a_tensor(small: Path, checksum: object) -> None:
    path = shard_of(small, f"{LINEAR}.bias")

    def change(manifest: Json) -> None:
        manifest["files"][path.name]["tensors"][f"{LINEAR}.bias"] = checksum

    edit_json(small / MANIFEST, change)
    with rejected(ChecksumError, str(path), f"'{LINEAR}.bias'"):
        verify(open_converted(small))


@pytest.mark.rule("M3")
@pytest.mark.parametrize("file", ["tokenizer.json", "generation_config.json"])
def test_a_file_of_the_manifest_that_is_absent(converted: Path, file: str) -> None:
    (converted / file).unlink()
    with rejected(NotFoundError, str(converted / file), MANIFEST):
        verify(open_converted(converted))


@pytest.mark.rule("M3")
@pytest.mark.parametrize("header_bytes", [0, 8, 4095, 10**18])
def test_a_checksum_that_does_not_cover_the_header(small: Path, header_bytes: int) -> None:
    def change(manifest: Json) -> None:
        data = (small / FIRST).read_bytes()[:header_bytes]
        sums = {"header_bytes": header_bytes, "xxh3_128": xxhash.xxh3_128_hexdigest(data)}
        manifest["files"][FIRST].update(sums)

    edit_json(small / MANIFEST, change)
    with rejected(ChecksumError, str(small / FIRST), "header"):
        verify(open_converted(small))


@pytest.mark.rule("L3")
def test_padding_that_is_not_zero(small: Path) -> None:
    path = small / FIRST
    header, _ = read_shard(path)
    begin, end = header["int8conv.padding.0"]["data_offsets"]
    for position in (begin, end - 1):
        good = path.read_bytes()
        overwrite(path, payload_offset(path) + position, b"\1")
        with rejected(NumberError, str(path), "'int8conv.padding.0'"):
            verify(open_converted(small))
        path.write_bytes(good)


@pytest.mark.rule("N1")
@pytest.mark.parametrize("position", [0, -1])
def test_a_code_of_minus_128(small: Path, position: int) -> None:
    name = f"{LINEAR}.weight"
    size = len(tensor_bytes(small, name))
    write_tensor(small, name, b"\x80", position % size)
    with rejected(NumberError, str(shard_of(small, name)), f"'{name}'", "-128"):
        verify(open_converted(small))


@pytest.mark.rule("N2")
@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf"), -1.0, -1e-45])
def test_a_scale_that_is_negative_or_not_finite(small: Path, scale: float) -> None:
    name = f"{LINEAR}.weight_scale"
    write_tensor(small, name, struct.pack("<f", scale), 4 * 63)
    with rejected(NumberError, str(shard_of(small, name)), f"'{name}'"):
        verify(open_converted(small))


@pytest.mark.rule("N3")
@pytest.mark.parametrize("code", [1, -1, 127])
def test_a_code_in_an_outlier_column(small: Path, code: int) -> None:
    name = f"{LINEAR}.weight"
    (column,) = struct.unpack("<i", tensor_bytes(small, f"{LINEAR}.outlier_index")[-4:])
    write_tensor(small, name, struct.pack("<b", code), 63 * 160 + column)
    with rejected(NumberError, str(shard_of(small, name)), f"'{name}'", "outlier"):
        verify(open_converted(small))


@pytest.mark.rule("N2")
@pytest.mark.parametrize("scale", [-0.0, 1e-45, 2.0**-126 - 2.0**-149])
def test_a_scale_that_is_no_normal_number(small: Path, scale: float) -> None:
    """Subnormal ones would come out differently where they are flushed to zero."""
    name = f"{LINEAR}.weight_scale"
    write_tensor(small, name, struct.pack("<f", scale), 4 * 63)
    with rejected(NumberError, str(shard_of(small, name)), f"'{name}'", "2^-126"):
        verify(open_converted(small))


@pytest.mark.rule("N2")
@pytest.mark.rule("N7")
@pytest.mark.parametrize("row", [0, 63])
def test_codes_of_a_row_with_scale_zero(small: Path, row: int) -> None:
    name = f"{LINEAR}.weight"
    write_tensor(small, f"{LINEAR}.weight_scale", struct.pack("<f", 0.0), 4 * row)
    with rejected(NumberError, str(shard_of(small, name)), f"'{name}'", "scale 0"):
        verify(open_converted(small))
    write_tensor(small, name, bytes(160), 160 * row)
    verify(open_converted(small))
    write_tensor(small, f"{LINEAR}.weight_scale", struct.pack("<f", 2.0**-126), 4 * row)
    verify(open_converted(small))


@pytest.mark.rule("N8")
@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7C01, 0xFFFF])
@pytest.mark.parametrize(
    "name",
    [
        f"{LINEAR}.outlier_weight", f"{LINEAR}.bias", "model.decoder.embed_tokens.weight",
        "model.decoder.final_layer_norm.weight",
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", [0, -2])
def test_a_value_that_is_not_finite(small: Path, name: str, bits: int, place: int) -> None:
    size = len(tensor_bytes(small, name))
    write_tensor(small, name, struct.pack("<H", bits), place % size)
    with rejected(NumberError, str(shard_of(small, name)), f"'{name}'", "NaN"):
        verify(open_converted(small))


@pytest.mark.rule("N8")
@pytest.mark.parametrize(
    ("dtype", "bits", "finite"),
    [
        ("BF16", 0x7F80, False), ("BF16", 0xFFC1, False), ("BF16", 0x7F7F, True), ("BF16", 0x7C00, True),
        ("F16", 0x7BFF, True),
    ],
)  # fmt: skip
def test_what_is_finite_depends_on_the_dtype(
    small: Path, dtype: str, bits: int, finite: bool
) -> None:
    name = "model.decoder.final_layer_norm.weight"
    restate_tensor(small, name, dtype=dtype)
    write_tensor(small, name, struct.pack("<H", bits) * (len(tensor_bytes(small, name)) // 2))
    if finite:
        verify(open_converted(small))
        return
    with rejected(NumberError, str(shard_of(small, name)), f"'{name}'"):
        verify(open_converted(small))


@pytest.mark.rule("N8")
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_float32_value_that_is_not_finite(small: Path, value: float) -> None:
    name = "model.decoder.final_layer_norm.weight"
    (elements,) = read_shard(shard_of(small, name))[0][name]["shape"]
    restate_tensor(small, name, dtype="F32", shape=[elements // 2])
    write_tensor(small, name, struct.pack("<f", value), 4)
    with rejected(NumberError, str(shard_of(small, name)), f"'{name}'"):
        verify(open_converted(small))


@pytest.mark.rule("N1")
@pytest.mark.rule("N3")
@pytest.mark.parametrize("rows", [1, 7, 64, 100])
def test_every_row_of_every_block_is_looked_at(
    small: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """The linear's 64 rows in blocks of one row, of 7 with a rest of one, in one block, in one that could be longer."""
    monkeypatch.setattr("int8conv.formats.int8.verify.BLOCK_CODES", rows * 160 + 159)
    name = f"{LINEAR}.weight"
    path, good = shard_of(small, name), tensor_bytes(small, name)
    (outlier,) = struct.unpack("<i", tensor_bytes(small, f"{LINEAR}.outlier_index")[:4])
    linear = open_converted(small).linears[LINEAR]
    offset, columns = linear.weight.offset, (0 if outlier else 1, outlier)
    for row in range(64):
        for column, code, problem in (
            (columns[0], 0x80, "-128"),
            (columns[1], 1, "outlier column"),
        ):
            position = row * 160 + column
            overwrite(path, offset + position, bytes([code]))
            with pytest.raises(NumberError, match=problem):
                verify_linear(open_converted(small).linears[LINEAR])
            overwrite(path, offset + position, good[position : position + 1])
    verify_linear(open_converted(small).linears[LINEAR])
