"""Bytes that must never change within version 1: of a header, of a shard, and of rows quantized by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash

from int8conv.convert.converter import convert_checkpoint
from int8conv.convert.rounding.quantize import RowQuantizer
from int8conv.formats.int8.layout import TensorSpec, Unit, plan_layout
from int8conv.formats.int8.writer import ShardWriter

from ...checkpoints import LLAMA, random_tensors, write_checkpoint

LAYOUT: tuple[Unit, ...] = (
    ((TensorSpec("norm.weight", "F16", (5,)),),),
    (
        (TensorSpec("a.weight", "I8", (2, 32, 1)), TensorSpec("b.weight", "I8", (3, 32, 1))),
        (TensorSpec("a.weight_scale", "F32", (2,)), TensorSpec("b.weight_scale", "F32", (3,))),
        (TensorSpec("a.outlier_index", "I32", (16,)), TensorSpec("b.outlier_index", "I32", (16,))),
        (
            TensorSpec("a.outlier_weight", "F16", (2, 16)),
            TensorSpec("b.outlier_weight", "F16", (3, 16)),
        ),
        (TensorSpec("a.bias", "F16", (2,)), TensorSpec("b.bias", "F16", (3,))),
    ),
)
"""Two linears that share an input, and a tensor that is kept."""

HEADER = (
    '{"__metadata__":{"format":"int8conv","version":"1"},'
    '"norm.weight":{"dtype":"F16","shape":[5],"data_offsets":[0,10]},'
    '"int8conv.padding.0":{"dtype":"U8","shape":[246],"data_offsets":[10,256]},'
    '"a.weight":{"dtype":"I8","shape":[2,32,1],"data_offsets":[256,320]},'
    '"b.weight":{"dtype":"I8","shape":[3,32,1],"data_offsets":[320,416]},'
    '"int8conv.padding.1":{"dtype":"U8","shape":[96],"data_offsets":[416,512]},'
    '"a.weight_scale":{"dtype":"F32","shape":[2],"data_offsets":[512,520]},'
    '"b.weight_scale":{"dtype":"F32","shape":[3],"data_offsets":[520,532]},'
    '"int8conv.padding.2":{"dtype":"U8","shape":[236],"data_offsets":[532,768]},'
    '"a.outlier_index":{"dtype":"I32","shape":[16],"data_offsets":[768,832]},'
    '"b.outlier_index":{"dtype":"I32","shape":[16],"data_offsets":[832,896]},'
    '"int8conv.padding.3":{"dtype":"U8","shape":[128],"data_offsets":[896,1024]},'
    '"a.outlier_weight":{"dtype":"F16","shape":[2,16],"data_offsets":[1024,1088]},'
    '"b.outlier_weight":{"dtype":"F16","shape":[3,16],"data_offsets":[1088,1184]},'
    '"int8conv.padding.4":{"dtype":"U8","shape":[96],"data_offsets":[1184,1280]},'
    '"a.bias":{"dtype":"F16","shape":[2],"data_offsets":[1280,1284]},'
    '"b.bias":{"dtype":"F16","shape":[3],"data_offsets":[1284,1290]}}'
)


def test_the_bytes_of_a_header() -> None:
    (layout,) = plan_layout(LAYOUT, max_shard_bytes=1 << 20)
    assert layout.name == "model-00001-of-00001.safetensors"
    assert layout.header[:8] == b"\xf8\x0f\0\0\0\0\0\0"
    assert layout.header[8:] == HEADER.encode().ljust(4088)
    assert layout.nbytes == 4096 + 1290


def test_the_bytes_of_a_shard(tmp_path: Path) -> None:
    (layout,) = plan_layout(LAYOUT, max_shard_bytes=1 << 20)
    shard = ShardWriter(tmp_path, layout)
    for number, t in enumerate(t for t in layout.tensors if "padding" not in t.name):
        shard.write(t.name, memoryview(bytes((number * 31 + i * 7) % 256 for i in range(t.nbytes))))
    shard.close()
    data = (tmp_path / layout.name).read_bytes()
    assert data[4096:4112] == bytes(range(0, 70, 7)) + bytes(6)
    assert xxhash.xxh3_128_hexdigest(data) == "0117281de6bcd8dddf16d1df04b6d39e"


def arithmetic_source(folder: Path, dtype: torch.dtype) -> Path:
    """A Llama whose weights are small integers over 1024: exact in every dtype, the same everywhere."""
    tensors = {}
    for number, (name, like) in enumerate(random_tensors(LLAMA).items()):
        i = torch.arange(like.numel(), dtype=torch.int64)
        values = (i * 37 + i // 64 * 11 + number * 5) % 255 - 127
        tensors[name] = (values.reshape(like.shape) / 1024).to(dtype)
    return write_checkpoint(folder, LLAMA, tensors)


@pytest.mark.rule("F9")
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, "691d5ca1f63870cbfae97ffe4f4d35f7"),
        (torch.bfloat16, "845145d95095544e5bd55c8fc6e76319"),
        (torch.float32, "5ae776985663533a98222a41dd843129"),
    ],
    ids=str,
)
def test_the_bytes_of_a_converted_model(tmp_path: Path, dtype: torch.dtype, expected: str) -> None:
    source = arithmetic_source(tmp_path / "source", dtype)
    convert_checkpoint(source, tmp_path / "out", outliers="none")
    data = (tmp_path / "out" / "model-00001-of-00001.safetensors").read_bytes()
    assert xxhash.xxh3_128_hexdigest(data) == expected


def test_the_small_files_of_a_converted_model(tmp_path: Path) -> None:
    convert_checkpoint(
        arithmetic_source(tmp_path / "source", torch.float16), tmp_path / "out", outliers="none"
    )
    groups = [
        [f"self_attn.{role}_proj" for role in "qkv"], ["self_attn.o_proj"],
        ["mlp.gate_proj", "mlp.up_proj"], ["mlp.down_proj"],
    ]  # fmt: skip
    lines = [
        f'      {{"linears": {json.dumps([f"model.layers.{layer}.{path}" for path in paths])}, '
        '"outliers": 0, "dtype": null, "threshold": null}'
        for layer in range(LLAMA["num_hidden_layers"])
        for paths in groups
    ]
    config = json.dumps(LLAMA, indent=2).removesuffix("\n}")
    config += (
        ',\n  "quantization_config": {\n    "quant_method": "int8conv",\n    "version": 1,\n'
        '    "outliers": "none",\n    "dtype": "float16",\n    "groups": [\n'
    )
    config += ",\n".join(lines) + "\n    ]\n  }\n}\n"
    assert (tmp_path / "out" / "config.json").read_text() == config
    manifest = json.loads((tmp_path / "out" / "int8conv.json").read_text())
    assert list(manifest) == [
        "format", "version", "generator", "source", "options", "calibration", "inputs", "rounded",
        "skipped", "files",
    ]  # fmt: skip
    assert manifest["inputs"][0] == {
        "linears": [f"model.layers.0.self_attn.{role}_proj" for role in "qkv"],
        "in_features": 64, "outliers": 0, "threshold": None,
    }  # fmt: skip
    assert list(manifest["files"]) == [
        "config.json", "model.safetensors.index.json", "model-00001-of-00001.safetensors",
    ]  # fmt: skip


TINY = 2.0**-127
"""Half of the smallest scale; a subnormal."""

ROWS = [
    # scale 1: every half is a tie, which goes to the even neighbour; column 3 is an outlier
    [127, 0.5, 1.5, 9e4, 2.5, -0.5, -1.5, -2.5, 3.49, 3.5, -3.51, 126.5, 125.5, -126.5, 0, -127],
    # all zero but for the outlier
    [0, 0, 0, -3, 0, 0, -0.0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    # nothing at all
    [0.0] * 16,
    # scale 2: the outlier is not the largest magnitude of the row
    [1, 3, 5, 0.5, 7, -1, -3, -5, -7, 254, 253, 252, 251, -254, -253, -251],
    # fp32(1 / 127) is a little below 1 / 127: half of the row is 63.5000002, which fp32 makes 63.5
    [1, 0.5, -0.5, 1e30, 0.25, -0.25, 0.125, -1, 0.75, -0.75, 0, 0, 0.375, 0.0625, 1, 0],
    # a / 127 would be a subnormal: the scale is 2^-126
    [TINY, 3 * TINY, 5 * TINY, 1, 7 * TINY, -TINY, -3 * TINY, -5 * TINY, -7 * TINY, TINY / 2,
     1.5 * TINY, 2 * TINY, 0, 2.5 * TINY, 2**-149, 253 * TINY],
]  # fmt: skip
CODES = [
    [127, 0, 2, 0, 2, 0, -2, -2, 3, 4, -4, 126, 126, -126, 0, -127],
    [0] * 16,
    [0] * 16,
    [0, 2, 2, 0, 4, 0, -2, -2, -4, 127, 126, 126, 126, -127, -126, -126],
    [127, 64, -64, 0, 32, -32, 16, -127, 95, -95, 0, 0, 48, 8, 127, 0],
    [0, 2, 2, 0, 4, 0, -2, -2, -4, 0, 1, 1, 0, 1, 0, 126],
]
SCALES = [0x3F800000, 0, 0, 0x40000000, 0x3C010204, 0x00800000]


def test_rows_quantized_by_hand() -> None:
    rows = np.array(ROWS, np.float32)
    quantizer = RowQuantizer("F32", np.array([3], np.int32))
    block = quantizer.quantize(rows.view(np.uint32).copy())
    assert [f"{bits:08x}" for bits in block.scale.view(np.uint32)] == [f"{s:08x}" for s in SCALES]
    np.testing.assert_array_equal(block.codes, CODES)
    np.testing.assert_array_equal(block.outliers, rows.view(np.uint32)[:, 3:4])


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_rows_do_not_depend_on_the_block(rows: int) -> None:
    bits = np.array(ROWS, np.float32).view(np.uint32)
    quantizer = RowQuantizer("F32", np.array([3], np.int32))
    for first in range(0, len(bits), rows):
        block = quantizer.quantize(bits[first : first + rows].copy())
        np.testing.assert_array_equal(block.codes, CODES[first : first + rows])
        expected = np.array(SCALES[first : first + rows], np.uint32)
        np.testing.assert_array_equal(block.scale.view(np.uint32), expected)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_16_bit_rows_by_hand(dtype: str) -> None:
    """Numbers that both have: ties at scale 1 and 2, a zero row, an outlier, and half a row scale."""
    rows = np.array([ROWS[0], ROWS[2], [1, 3, 5, 8, 7, -1, -3, -5, -7, *[254] * 7]], np.float32)
    rows[0, [3, 8, 10, 11, 12, 13]] = [512, 3, -4, 126, 125, -126]
    bits = rows.astype(np.float16).view(np.uint16)
    if dtype == "BF16":
        bits = (rows.view(np.uint32) >> 16).astype(np.uint16)
    block = RowQuantizer(dtype, np.array([3], np.int32)).quantize(bits.copy())
    first = [127, 0, 2, 0, 2, 0, -2, -2, 3, 4, -4, 126, 125, -126, 0, -127]
    last = [0, 2, 2, 0, 4, 0, -2, -2, -4, *[127] * 7]
    np.testing.assert_array_equal(block.codes, [first, [0] * 16, last])
    np.testing.assert_array_equal(block.scale, [1, 0, 2])
    np.testing.assert_array_equal(block.outliers, bits[:, 3:4])
