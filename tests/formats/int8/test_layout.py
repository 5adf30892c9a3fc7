"""The layout planner keeps every rule of section 4 for any tensors, and folders that break one are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from itertools import count, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from int8conv.convert.converter import convert_checkpoint
from int8conv.errors import LayoutError
from int8conv.formats.int8.folder import open_converted
from int8conv.formats.int8.layout import ShardLayout, TensorSpec, Unit, plan_layout
from int8conv.formats.int8.verify import verify
from int8conv.formats.safetensors.dtypes import ITEM_BYTES
from int8conv.formats.safetensors.header import (
    LENGTH_BYTES,
    Header,
    TensorInfo,
    build_header,
    parse_header,
)
from int8conv.formats.safetensors.stored import StoredTensor, read_array
from int8conv.formats.source.checkpoint import open_checkpoint

from ...checkpoints import write_checkpoint
from ..damage import (
    INDEX,
    MANIFEST,
    Piece,
    edit_json,
    padding,
    pieces,
    read_shard,
    refresh,
    rejected,
    restate_tensor,
    shard_of,
    swap_tensors,
    write_pieces,
    write_raw,
)

SHARD = "model-00001-of-00001.safetensors"
Q, K, V = (f"model.decoder.layers.0.self_attn.{role}_proj" for role in "qkv")
OUT = "model.decoder.layers.0.self_attn.out_proj"
KINDS = ("weight", "weight_scale", "outlier_index", "outlier_weight", "bias")


@st.composite
def units(draw: st.DrawFn) -> list[Unit]:
    """Units of runs of tensors with names of any text, of all dtypes, many of them empty or odd in size."""
    shapes = st.lists(st.integers(0, 40), max_size=3)
    names = st.text(min_size=1, max_size=8).filter(lambda n: n != "__metadata__")
    kinds = st.tuples(st.sampled_from(sorted(ITEM_BYTES)), shapes)
    specs = draw(st.lists(st.tuples(names, kinds), max_size=12, unique_by=lambda spec: spec[0]))
    result: list[Unit] = []
    while specs:
        unit = []
        for _ in range(draw(st.integers(1, 3))):
            count = draw(st.integers(1, 3))
            if specs[:count]:
                unit.append(tuple(TensorSpec(n, d, tuple(s)) for n, (d, s) in specs[:count]))
            specs = specs[count:]
        result.append(tuple(unit))
    return result


def reread(layout: ShardLayout) -> Header:
    length = int.from_bytes(layout.header[:8], "little")
    assert length == len(layout.header) - LENGTH_BYTES
    payload = layout.nbytes - len(layout.header)
    return parse_header(layout.header[8:], payload_bytes=payload, file=layout.name)


def check_runs(unit: Unit, placed: dict[str, TensorInfo]) -> None:
    """Each run starts aligned and has no byte between its tensors."""
    for run in unit:
        assert placed[run[0].name].begin % 256 == 0
        for before, tensor in pairwise(run):
            assert placed[tensor.name].begin == placed[before.name].end


@pytest.mark.rule("L1")
@pytest.mark.rule("L2")
@pytest.mark.rule("L3")
@settings(max_examples=300, deadline=None)
@given(units(), st.integers(1, 40_000))
def test_any_plan_round_trips_and_keeps_the_rules(plan: list[Unit], max_shard_bytes: int) -> None:
    layouts = plan_layout(plan, max_shard_bytes=max_shard_bytes)
    shard_of_tensor: dict[str, str] = {}
    order: list[str] = []
    placed: dict[str, TensorInfo] = {}
    for layout in layouts:
        header = reread(layout)
        assert header.payload_offset == len(layout.header)
        assert header.payload_offset % 4096 == 0
        assert header.metadata == {"format": "int8conv", "version": "1"}
        assert tuple(header.tensors.values()) == layout.tensors
        paddings = [t for t in layout.tensors if t.name.startswith("int8conv.padding.")]
        assert [t.name for t in paddings] == [f"int8conv.padding.{i}" for i in range(len(paddings))]
        for t in paddings:
            assert (t.dtype, t.shape) == ("U8", (t.nbytes,))
            assert 0 < t.nbytes < 256
        real = {t.name: t for t in layout.tensors if t not in paddings}
        placed |= real
        order += real
        shard_of_tensor |= dict.fromkeys(real, layout.name)
    specs = [spec for unit in plan for run in unit for spec in run]
    assert order == [spec.name for spec in specs]
    for spec in specs:
        info = placed[spec.name]
        assert (info.dtype, info.shape, info.nbytes) == (spec.dtype, spec.shape, spec.nbytes)
    for unit in plan:
        check_runs(unit, placed)
        assert len({shard_of_tensor[spec.name] for run in unit for spec in run}) == 1


@settings(deadline=None)
@given(units(), st.integers(1, 20_000))
def test_a_shard_is_larger_than_the_limit_only_for_one_unit(
    plan: list[Unit], max_shard_bytes: int
) -> None:
    layouts = plan_layout(plan, max_shard_bytes=max_shard_bytes)
    count = len(layouts)
    assert [x.name for x in layouts] == [
        f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)
    ]
    first_names = [unit[0][0].name for unit in plan]
    for layout in layouts:
        if layout.nbytes - len(layout.header) > max_shard_bytes:
            assert sum(t.name in first_names for t in layout.tensors) == 1


@pytest.mark.rule("L1")
@settings(deadline=None)
@given(
    st.lists(st.text(min_size=1, max_size=30), max_size=5, unique=True),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    st.sampled_from([1, 8, 256, 4096]),
)
def test_a_header_that_is_built_is_parsed_again(
    names: list[str], metadata: dict[str, str], alignment: int
) -> None:
    names = [name for name in names if name != "__metadata__"]
    tensors = [TensorInfo(name, "U8", (3,), 3 * i, 3 * i + 3) for i, name in enumerate(names)]
    data = build_header(tensors, metadata, alignment=alignment)
    assert len(data) % alignment == 0
    header = parse_header(data[8:], payload_bytes=3 * len(names), file="built")
    assert (list(header.tensors.values()), header.metadata) == (tensors, metadata)


def group_runs(folder: Path) -> list[list[StoredTensor]]:
    """For each group of a folder and each kind: the tensors, in the order of ``linears``."""
    opened = open_converted(folder)
    tensors = opened.checkpoint.tensors
    return [
        [tensors[f"{p}.{kind}"] for p in group.linears if f"{p}.{kind}" in tensors]
        for group in opened.manifest.inputs
        for kind in KINDS
    ]


@pytest.mark.rule("L1")
@pytest.mark.rule("L2")
@pytest.mark.rule("L4")
@pytest.mark.rule("L5")
def test_the_writer_keeps_the_rules(small_int8: Path, example_int8: Path) -> None:
    for folder in (small_int8, example_int8):
        opened = open_converted(folder)
        payloads = {s: h.payload_offset for s, h in opened.checkpoint.headers.items()}
        assert all(offset % 4096 == 0 for offset in payloads.values())
        followers: set[str] = set()
        runs = [run for run in group_runs(folder) if run]
        for run in runs:
            for before, tensor in pairwise(run):
                assert (tensor.file, tensor.offset) == (before.file, before.offset + before.nbytes)
                followers.add(tensor.name)
        alone = [t for t in opened.checkpoint.tensors.values() if t.name not in followers]
        assert not followers & {t.name for t in opened.others()}
        assert all((t.offset - payloads[t.file.name]) % 256 == 0 for t in alone)


@pytest.mark.rule("L3")
def test_padding_of_the_writer_is_zero_and_counted_from_0_in_each_shard(small_int8: Path) -> None:
    opened = open_converted(small_int8)
    for shard in opened.checkpoint.headers:
        found = [p for p in pieces(small_int8 / shard) if p[0].startswith("int8conv.padding.")]
        assert [p[0] for p in found] == [f"int8conv.padding.{i}" for i in range(len(found))]
        assert len(found) > 1
        for _, dtype, shape, data in found:
            assert (dtype, shape) == ("U8", [len(data)])
            assert 0 < len(data) < 256
            assert not any(data)


@pytest.mark.rule("L4")
@pytest.mark.parametrize("max_shard_bytes", [1, 20_000, 10**9])
def test_a_group_is_never_split(tmp_path: Path, small_source: Path, max_shard_bytes: int) -> None:
    out = tmp_path / "out"
    convert_checkpoint(small_source, out, outliers="none", max_shard_bytes=max_shard_bytes)
    opened = open_converted(out)
    assert (len(opened.checkpoint.headers) > 8) == (max_shard_bytes == 1)
    for group in opened.manifest.inputs:
        parts = [opened.linears[path] for path in group.linears]
        assert len({t.file for linear in parts for t in linear.tensors()}) == 1


@pytest.mark.rule("L5")
def test_tensors_stand_in_the_order_of_use(example_int8: Path) -> None:
    names = [t.name for t in open_converted(example_int8).others()]
    norms = ("input_layernorm", "post_attention_layernorm")
    layers = [f"model.layers.{i}.{norm}.weight" for i in range(6) for norm in norms]
    assert names == ["model.embed_tokens.weight", *layers, "model.norm.weight"]


@pytest.mark.rule("L6")
@pytest.mark.rule("L1")
@pytest.mark.parametrize("alignment", [8, 256, 2048])
def test_a_payload_that_is_not_aligned(converted: Path, alignment: int) -> None:
    header, payload = read_shard(converted / SHARD)
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 4096 + alignment)
    write_raw(converted / SHARD, text, payload)
    refresh(converted)
    with rejected(LayoutError, str(converted / SHARD), "4096"):
        open_converted(converted)


@pytest.mark.rule("L6")
@pytest.mark.rule("L2")
@pytest.mark.parametrize("shift", [1, 16, 128])
def test_a_tensor_that_is_not_aligned(converted: Path, shift: int) -> None:
    path = converted / SHARD
    write_pieces(path, [padding(999, shift), *pieces(path)])
    refresh(converted)
    with rejected(LayoutError, str(path), "'model.embed_tokens.weight'", "256"):
        open_converted(converted)


@pytest.mark.rule("L6")
@pytest.mark.rule("L2")
def test_the_last_run_alone_not_aligned(small: Path) -> None:
    path = small / "model-00003-of-00003.safetensors"
    *before, gap, last = pieces(path)
    assert gap[0].startswith("int8conv.padding.")
    write_pieces(path, [*before, padding(999, len(gap[3]) + 2), last])
    refresh(small)
    with rejected(LayoutError, str(path), f"'{last[0]}'"):
        open_converted(small)


@pytest.mark.rule("L6")
@pytest.mark.rule("L4")
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_in_another_order(small: Path, kind: str) -> None:
    swap_tensors(small, f"{K}.{kind}", f"{V}.{kind}")
    path = shard_of(small, f"{K}.{kind}")
    with rejected(LayoutError, str(path), f"'{K}.{kind}'", f"'{Q}.{kind}'"):
        open_converted(small)


@pytest.mark.rule("L6")
@pytest.mark.rule("L4")
def test_a_manifest_in_another_order(small: Path) -> None:
    edit_json(small / MANIFEST, lambda manifest: manifest["inputs"][0]["linears"].reverse())
    with rejected(LayoutError, str(shard_of(small, f"{K}.weight")), f"'{K}.weight'"):
        open_converted(small)


@pytest.mark.rule("L6")
@pytest.mark.rule("L4")
def test_a_hole_within_a_run(small: Path) -> None:
    path = shard_of(small, f"{K}.weight")
    parts = pieces(path)
    at = next(i for i, piece in enumerate(parts) if piece[0] == f"{K}.weight")
    write_pieces(path, [*parts[:at], padding(98, 128), padding(99, 128), *parts[at:]])
    refresh(small)
    with rejected(LayoutError, str(path), f"'{K}.weight'", f"'{Q}.weight'"):
        open_converted(small)


@pytest.mark.rule("L6")
@pytest.mark.rule("L4")
def test_a_run_of_two_dtypes(small: Path) -> None:
    restate_tensor(small, f"{K}.outlier_weight", dtype="BF16")
    path = shard_of(small, f"{K}.weight")
    with rejected(LayoutError, str(path), f"'{K}.outlier_weight'", "F16", "BF16"):
        open_converted(small)


@pytest.mark.rule("L6")
@pytest.mark.rule("L4")
def test_a_linear_of_two_shards(small: Path) -> None:
    """A whole run moves to the end of the next shard, where it is aligned."""
    name = f"{OUT}.weight_scale"
    first, second = (small / f"model-0000{i}-of-00003.safetensors" for i in (1, 2))
    parts = pieces(first)
    moved = next(piece for piece in parts if piece[0] == name)
    size = len(moved[3])
    assert size == 256
    at = parts.index(moved)
    write_pieces(first, [*parts[:at], padding(98, 128), padding(99, 128), *parts[at + 1 :]])
    tail = sum(len(piece[3]) for piece in pieces(second)) % 256
    write_pieces(second, [*pieces(second), padding(99, 256 - tail), moved])
    edit_json(small / INDEX, lambda index: index["weight_map"].update({name: second.name}))
    refresh(small)
    with rejected(LayoutError, str(second), f"'{name}'", "shard"):
        open_converted(small)


@pytest.mark.rule("F9")
@pytest.mark.parametrize("jobs", [1, 3])
def test_the_same_source_gives_the_same_bytes(
    tmp_path: Path, small_source: Path, small_int8: Path, jobs: int
) -> None:
    elsewhere = tmp_path / "elsewhere" / small_source.name
    shutil.copytree(small_source, elsewhere)
    out = tmp_path / "out"
    convert_checkpoint(elsewhere, out, max_shard_bytes=60_000, jobs=jobs)
    assert contents(out) == contents(small_int8)


@pytest.mark.rule("F9")
def test_no_file_holds_a_path_or_a_host(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "some" / "source")
    convert_checkpoint(source, tmp_path / "out", outliers="none")
    for name, data in contents(tmp_path / "out").items():
        assert str(tmp_path).encode() not in data, name
        assert b"/some/" not in data, name


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_offsets_of_a_checkpoint_are_those_of_the_bytes(small: Path) -> None:
    checkpoint = open_checkpoint(small)
    for tensor in checkpoint.tensors.values():
        data = next(
            p[3] for p in pieces(checkpoint.folder / tensor.file.name) if p[0] == tensor.name
        )
        assert read_array(tensor).tobytes() == data


def names_of(layouts: Sequence[ShardLayout]) -> list[list[str]]:
    return [[t.name for t in layout.tensors] for layout in layouts]


def test_nothing_to_place_is_one_empty_shard() -> None:
    (layout,) = plan_layout([], max_shard_bytes=1)
    assert (layout.name, layout.tensors, layout.nbytes) == (SHARD, (), 4096)


def test_units_fill_shards_in_order() -> None:
    plan: list[Unit] = [((TensorSpec(name, "U8", (200,)),),) for name in "abcde"]
    assert names_of(plan_layout(plan, max_shard_bytes=512)) == [
        ["a", "int8conv.padding.0", "b"],
        ["c", "int8conv.padding.0", "d"],
        ["e"],
    ]


def first_padding(folder: Path) -> tuple[Path, list[Piece], int]:
    """A shard, its pieces, and the place of its first padding among them."""
    path = folder / "model-00001-of-00003.safetensors"
    parts = pieces(path)
    return path, parts, next(i for i, p in enumerate(parts) if p[0] == "int8conv.padding.0")


@pytest.mark.rule("L6")
@pytest.mark.rule("L3")
@pytest.mark.parametrize("name", ["01", "00", "-1", "", "x", "9" * 5000])
def test_padding_of_another_name(small: Path, name: str) -> None:
    path, parts, at = first_padding(small)
    _, *rest = parts[at]
    parts[at] = (f"int8conv.padding.{name}", *rest)  # type: ignore[assignment]
    write_pieces(path, parts)
    refresh(small)
    with rejected(LayoutError, str(path), f"'int8conv.padding.{name}'"[:300], "padding.0'"):
        open_converted(small)


@pytest.mark.rule("L6")
@pytest.mark.rule("L3")
def test_padding_that_is_counted_in_another_order(small: Path) -> None:
    path, parts, _ = first_padding(small)
    swapped = {
        "int8conv.padding.0": "int8conv.padding.1",
        "int8conv.padding.1": "int8conv.padding.0",
    }
    write_pieces(path, [(swapped.get(name, name), *rest) for name, *rest in parts])  # type: ignore[misc]
    refresh(small)
    with rejected(LayoutError, str(path), "'int8conv.padding.1'", "padding.0'"):
        open_converted(small)


@pytest.mark.rule("L6")
@pytest.mark.rule("L3")
@pytest.mark.parametrize("dtype", ["I8", "BOOL"])
def test_padding_of_another_dtype(small: Path, dtype: str) -> None:
    path, parts, at = first_padding(small)
    name, _, shape, data = parts[at]
    parts[at] = (name, dtype, shape, data)
    write_pieces(path, parts)
    refresh(small)
    with rejected(LayoutError, str(path), f"'{name}'", "U8"):
        open_converted(small)


@pytest.mark.rule("L6")
@pytest.mark.rule("L3")
@pytest.mark.parametrize("shape", [lambda n: [1, n], lambda n: [n, 1], lambda n: [n, 1, 1]])
def test_padding_of_another_shape(small: Path, shape: Callable[[int], list[int]]) -> None:
    path, parts, at = first_padding(small)
    name, dtype, (size,), data = parts[at]
    parts[at] = (name, dtype, shape(size), data)
    write_pieces(path, parts)
    refresh(small)
    with rejected(LayoutError, str(path), f"'{name}'", "U8 [n]"):
        open_converted(small)


@pytest.mark.rule("L6")
@pytest.mark.rule("L3")
@pytest.mark.parametrize("more", [1, 256])
def test_padding_that_is_longer_than_it_need_be(small: Path, more: int) -> None:
    """By one byte before an empty tensor, which nothing else holds to a place; by 256 before the first run."""
    path, parts, at = first_padding(small)
    if more == 1:
        size = len(parts[at][3])
        parts[at : at + 1] = [padding(0, size - 1), ("int8conv.padding.1", "U8", [1], b"\0")]
        parts[at + 2 :] = renumbered(parts[at + 2 :], 2)
    else:
        parts = [padding(0, 256), *renumbered(parts, 1)]
    write_pieces(path, parts)
    refresh(small)
    with rejected(LayoutError, str(path), "'int8conv.padding.0'"):
        open_converted(small)


@pytest.mark.rule("L6")
@pytest.mark.rule("L3")
def test_padding_of_no_bytes(small: Path) -> None:
    path, parts, _ = first_padding(small)
    write_pieces(path, [padding(0, 0), *renumbered(parts, 1)])
    refresh(small)
    with rejected(LayoutError, str(path), "'int8conv.padding.0'"):
        open_converted(small)


@pytest.mark.rule("L6")
@pytest.mark.rule("L3")
def test_padding_after_the_last_run(small: Path) -> None:
    path, parts, _ = first_padding(small)
    number = sum(p[0].startswith("int8conv.padding.") for p in parts)
    used = sum(len(p[3]) for p in parts) % 256
    write_pieces(path, [*parts, padding(number, 256 - used)])
    refresh(small)
    with rejected(LayoutError, str(path), f"'int8conv.padding.{number}'"):
        open_converted(small)


def renumbered(parts: Sequence[Piece], start: int) -> list[Piece]:
    """The same pieces with padding counted from ``start``."""
    numbers = count(start)
    return [
        (f"int8conv.padding.{next(numbers)}", *p[1:]) if p[0].startswith("int8conv.padding.") else p
        for p in parts
    ]


@pytest.mark.rule("L4")
def test_kinds_in_another_order_are_read(small: Path) -> None:
    """A reader does not depend on it."""
    path = shard_of(small, f"{Q}.weight")
    parts = [p for p in pieces(path) if not p[0].startswith("int8conv.padding.")]
    scales = [p for p in parts if p[0] in [f"{x}.weight_scale" for x in (Q, K, V)]]
    rest = [p for p in parts if p not in scales]
    weights = [p for p in rest if p[0] in [f"{x}.weight" for x in (Q, K, V)]]
    at = rest.index(weights[0])
    placed: list[Piece] = []
    for run in [*([p] for p in rest[:at]), scales, weights, *([p] for p in rest[at + 3 :])]:
        used = sum(len(p[3]) for p in placed)
        number = sum(p[0].startswith("int8conv.padding.") for p in placed)
        follows = run[0][0].rpartition(".")[2] in KINDS and run[0][0].startswith((K, V))
        if used % 256 and not follows:
            placed.append(padding(number, 256 - used % 256))
        placed += run
    write_pieces(path, placed)
    refresh(small)
    opened = open_converted(small)
    assert opened.linears[Q].scale.offset < opened.linears[Q].weight.offset
    verify(opened)
