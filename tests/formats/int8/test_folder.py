"""Open converted folders: files, companions and groups; one damage each, and what the error names."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors import safe_open

from int8conv.errors import (
    CompanionError,
    JsonFileError,
    MissingShardError,
    MissingTensorError,
    NotConvertedError,
    NotFoundError,
    OutlierIndexError,
    TruncatedFileError,
    UnknownVersionError,
    UnsafePathError,
)
from int8conv.formats.int8.folder import is_converted, open_converted
from int8conv.formats.int8.verify import verify
from int8conv.formats.safetensors.stored import read_array

from ..damage import (
    INDEX,
    MANIFEST,
    Change,
    Json,
    drop_tensor,
    edit_header,
    edit_json,
    padding,
    pieces,
    refresh,
    rejected,
    rename_tensor,
    restate_tensor,
    shard_of,
    tensor_bytes,
    write_pieces,
    write_tensor,
)
from ..source.test_index import UNSAFE_NAMES

SHARD = "model-00001-of-00001.safetensors"
Q, K, V = (f"model.layers.0.self_attn.{role}_proj" for role in "qkv")
DOWN = "model.layers.0.mlp.down_proj"
"""Has 16 outlier columns of 704."""
SMALL_Q, SMALL_K, SMALL_V = (f"model.decoder.layers.0.self_attn.{role}_proj" for role in "qkv")
"""Share 16 outlier columns of 64, and have biases."""


def test_a_good_folder_opens(converted: Path) -> None:
    opened = open_converted(converted)
    assert opened.folder == converted
    assert opened.config["model_type"] == "llama"
    assert len(opened.linears) == 42
    down = opened.linears[DOWN]
    assert (down.out_features, down.in_features, down.outliers) == (256, 704, 16)
    assert [t.name.rpartition(".")[2] for t in down.tensors()] == [
        "weight", "weight_scale", "outlier_index", "outlier_weight",
    ]  # fmt: skip
    q = opened.linears[Q]
    assert (q.outliers, q.bias) == (16, None)
    others = {t.name for t in opened.others()}
    assert "model.embed_tokens.weight" in others
    assert not others & {t.name for linear in opened.linears.values() for t in linear.tensors()}


def test_what_is_written_opens_in_the_library_with_the_same_values(small: Path) -> None:
    opened = open_converted(small)
    seen = 0
    for shard in opened.checkpoint.headers:
        with safe_open(small / shard, "np") as library:
            assert library.metadata() == {"format": "int8conv", "version": "1"}
            names = [name for name in library.keys() if not name.startswith("int8conv.padding.")]  # noqa: SIM118
            for name in names:
                array = library.get_tensor(name)
                stored = opened.checkpoint.tensors[name]
                assert array.shape == stored.shape
                np.testing.assert_array_equal(array, read_array(stored))
                seen += 1
    assert seen == len(opened.checkpoint.tensors)


def test_is_converted_tells_folders_apart(converted: Path, source: Path, tmp_path: Path) -> None:
    assert is_converted(converted)
    (converted / "config.json").rename(converted / "kept.json")
    assert is_converted(converted)  # and malformed
    (converted / "kept.json").rename(converted / "config.json")
    assert not is_converted(source)
    assert not is_converted(tmp_path / "nothing")
    (converted / MANIFEST).unlink()
    assert is_converted(converted)
    (converted / "config.json").write_text("{")
    assert not is_converted(converted)


def test_no_such_folder(tmp_path: Path) -> None:
    with rejected(NotFoundError, str(tmp_path / "no"), "no such folder"):
        open_converted(tmp_path / "no")


def test_a_file_in_place_of_a_folder(converted: Path) -> None:
    with rejected(NotFoundError, MANIFEST, "not a folder"):
        open_converted(converted / MANIFEST)


def section(**fields: object) -> Change:
    return lambda config: config["quantization_config"].update(fields)


@pytest.mark.rule("F1")
@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.pop("quantization_config"),
        lambda config: config.update(quantization_config=None),
        lambda config: config.update(quantization_config="int8conv"),
        lambda config: config["quantization_config"].pop("quant_method"),
        section(quant_method="gptq"),
        section(quant_method=["int8conv"]),
    ],
)
def test_a_config_that_does_not_say_int8conv(converted: Path, change: Change) -> None:
    edit_json(converted / "config.json", change)
    with rejected(NotConvertedError, str(converted), "quant_method"):
        open_converted(converted)


def config_group(**fields: object) -> Change:
    return lambda config: config["quantization_config"]["groups"][0].update(fields)


@pytest.mark.rule("F11")
@pytest.mark.parametrize(
    "change",
    [
        config_group(threshold=1.5),
        config_group(dtype="BF16"),
        config_group(outliers=32),
        config_group(linears=[SMALL_Q]),
        lambda config: config["quantization_config"]["groups"].pop(),
        lambda config: config["quantization_config"]["groups"].reverse(),
        config_group(threshold=-1),
        section(groups={}),
    ],
)
def test_groups_of_the_config_that_are_not_those_of_the_manifest(small: Path, change: Change) -> None:  # fmt: skip
    edit_json(small / "config.json", change)
    with rejected(JsonFileError, str(small / "config.json"), "quantization_config"):
        open_converted(small)


@pytest.mark.rule("V1")
def test_a_config_without_groups_or_with_more_in_them(small: Path) -> None:
    """Of an earlier release, and of a later one."""
    edit_json(small / "config.json", config_group(more=1))
    before = open_converted(small).linears
    edit_json(small / "config.json", lambda config: config["quantization_config"].pop("groups"))
    assert open_converted(small).linears == before


@pytest.mark.rule("F1")
def test_no_manifest(converted: Path) -> None:
    (converted / MANIFEST).unlink()
    with rejected(NotConvertedError, str(converted), MANIFEST):
        open_converted(converted)


@pytest.mark.rule("F1")
def test_a_source_is_not_a_converted_folder(source: Path) -> None:
    with rejected(NotConvertedError, str(source)):
        open_converted(source)


@pytest.mark.rule("F2")
@pytest.mark.parametrize("version", [0, 2, -1, 10**30, 1.0, "1", None, True, [1]])
@pytest.mark.parametrize("file", ["config.json", MANIFEST])
def test_an_unknown_version_in_a_json_file(converted: Path, file: str, version: object) -> None:
    def change(value: Json) -> None:
        (value["quantization_config"] if file == "config.json" else value)["version"] = version

    edit_json(converted / file, change)
    with rejected(UnknownVersionError, str(converted / file), repr(version)):
        open_converted(converted)


@pytest.mark.rule("F2")
@pytest.mark.parametrize("version", ["0", "2", "01", "1.0", "", "1 ", "9" * 5000, "\uff11"])
def test_an_unknown_version_in_a_shard(converted: Path, version: str) -> None:
    edit_header(converted / SHARD, lambda header: header["__metadata__"].update(version=version))
    refresh(converted)
    with rejected(UnknownVersionError, str(converted / SHARD), repr(version)[:300]):
        open_converted(converted)


@pytest.mark.rule("F2")
def test_a_shard_without_a_version(converted: Path) -> None:
    edit_header(converted / SHARD, lambda header: header["__metadata__"].pop("version"))
    refresh(converted)
    with rejected(UnknownVersionError, str(converted / SHARD)):
        open_converted(converted)


@pytest.mark.rule("H11")
@pytest.mark.parametrize(
    "metadata",
    [
        {}, {"format": "pt"}, {"version": "1"}, {"format": "INT8CONV", "version": "1"},
        {"format": "int8conv", "version": "1", "more": ""},
    ],
)  # fmt: skip
def test_a_shard_of_another_writer(converted: Path, metadata: dict[str, str]) -> None:
    edit_header(converted / SHARD, lambda header: header.update(__metadata__=metadata))
    refresh(converted)
    with rejected(NotConvertedError, str(converted / SHARD)):
        open_converted(converted)


@pytest.mark.rule("F3")
@pytest.mark.parametrize("file", ["config.json", MANIFEST, INDEX])
@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"1", b"\xff", b'{"a": 1} x'])
def test_json_that_does_not_parse_or_is_no_object(converted: Path, file: str, data: bytes) -> None:
    (converted / file).write_bytes(data)
    with rejected(JsonFileError, str(converted / file)):
        open_converted(converted)


def test_no_config(converted: Path) -> None:
    (converted / "config.json").unlink()
    with rejected(NotFoundError, str(converted / "config.json")):
        open_converted(converted)


def test_no_index(converted: Path) -> None:
    (converted / INDEX).unlink()
    with rejected(NotFoundError, str(converted / INDEX)):
        open_converted(converted)


def test_no_index_is_an_error_for_a_single_file_too(converted: Path) -> None:
    (converted / INDEX).unlink()
    (converted / SHARD).rename(converted / "model.safetensors")
    edit_json(
        converted / MANIFEST,
        lambda m: m["files"].update({"model.safetensors": m["files"].pop(SHARD)}),
    )
    with rejected(NotFoundError, str(converted / INDEX)):
        open_converted(converted)


@pytest.mark.rule("F10")
@pytest.mark.parametrize("file", ["config.json", MANIFEST, INDEX, SHARD])
@pytest.mark.parametrize("what", ["folder", "pipe", "dangling link"])
def test_something_that_is_no_regular_file(converted: Path, file: str, what: str) -> None:
    path = converted / file
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("nothing")
    with pytest.raises((NotFoundError, NotConvertedError, MissingShardError), match=file):
        open_converted(converted)


@pytest.mark.rule("F10")
def test_links_to_files_are_followed(converted: Path, tmp_path: Path) -> None:
    """As in the hub library's cache."""
    for name in ("config.json", MANIFEST, INDEX, SHARD):
        (converted / name).rename(converted / f"{name}.blob")
        (converted / name).symlink_to(f"{name}.blob")
    verify(open_converted(converted))


@pytest.mark.rule("F4")
@pytest.mark.parametrize("name", UNSAFE_NAMES)
def test_a_weight_map_stays_within_the_folder(converted: Path, name: str) -> None:
    edit_json(converted / INDEX, lambda index: index["weight_map"].update({f"{Q}.weight": name}))
    with rejected(UnsafePathError, str(converted / INDEX), f"'{Q}.weight'"):
        open_converted(converted)


@pytest.mark.rule("F5")
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_shard_that_is_absent(small: Path, number: int) -> None:
    shard = small / f"model-0000{number}-of-00003.safetensors"
    shard.unlink()
    with rejected(MissingShardError, str(shard)):
        open_converted(small)


@pytest.mark.rule("F5")
def test_a_shard_that_only_the_manifest_names(small: Path) -> None:
    name = "model-00003-of-00003.safetensors"

    def forget(index: Json) -> None:
        kept = {t: shard for t, shard in index["weight_map"].items() if shard != name}
        index["weight_map"] = kept

    edit_json(small / INDEX, forget)
    with rejected(MissingShardError, str(small / name), MANIFEST):
        open_converted(small)


@pytest.mark.rule("F6")
def test_a_listed_tensor_that_its_shard_lacks(converted: Path) -> None:
    edit_json(converted / INDEX, lambda i: i["weight_map"].update({"model.ghost.weight": SHARD}))
    with rejected(MissingTensorError, str(converted / SHARD), "'model.ghost.weight'"):
        open_converted(converted)


@pytest.mark.rule("F6")
@pytest.mark.parametrize("tensor", ["model.norm.weight", f"{Q}.weight", f"{DOWN}.outlier_index"])
def test_a_tensor_that_is_not_listed(converted: Path, tensor: str) -> None:
    edit_json(converted / INDEX, lambda index: index["weight_map"].pop(tensor))
    with rejected(MissingTensorError, str(converted / SHARD), f"'{tensor}'"):
        open_converted(converted)


@pytest.mark.rule("F6")
def test_a_tensor_that_is_listed_for_another_shard_than_this_one(small: Path) -> None:
    first, second = (small / f"model-0000{i}-of-00003.safetensors" for i in (1, 2))
    name = "model.decoder.layers.0.final_layer_norm.bias"
    copy = next(piece for piece in pieces(first) if piece[0] == name)
    write_pieces(second, [*pieces(second), padding(99, 128), copy])
    refresh(small)
    with rejected(MissingTensorError, str(second), f"'{name}'"):
        open_converted(small)


@pytest.mark.rule("F6")
def test_padding_that_is_listed(converted: Path) -> None:
    edit_json(converted / INDEX, lambda i: i["weight_map"].update({"int8conv.padding.0": SHARD}))
    refresh(converted)
    with rejected(JsonFileError, str(converted / INDEX), "'int8conv.padding.0'"):
        open_converted(converted)


@pytest.mark.rule("F6")
def test_the_index_lists_every_tensor_but_padding_and_no_other(small: Path) -> None:
    weight_map = json.loads((small / INDEX).read_text())["weight_map"]
    shards = sorted(path for path in small.iterdir() if path.suffix == ".safetensors")
    stored = {piece[0]: path.name for path in shards for piece in pieces(path)}
    real = {n: shard for n, shard in stored.items() if not n.startswith("int8conv.padding.")}
    assert weight_map == real
    assert len(stored) > len(real)


@pytest.mark.rule("F7")
@pytest.mark.parametrize("bytes_of_manifest", [0, 1, 10**18, 8_737_535])
def test_a_shard_of_another_size_than_the_manifest_says(
    converted: Path, bytes_of_manifest: int
) -> None:
    edit_json(converted / MANIFEST, lambda m: m["files"][SHARD].update(bytes=bytes_of_manifest))
    with rejected(TruncatedFileError, str(converted / SHARD), str(bytes_of_manifest)):
        open_converted(converted)


@pytest.mark.rule("F7")
def test_a_shard_that_grew_by_a_tensor(converted: Path) -> None:
    write_pieces(converted / SHARD, [*pieces(converted / SHARD), padding(9999, 256)])
    with rejected(TruncatedFileError, str(converted / SHARD), MANIFEST):
        open_converted(converted)


@pytest.mark.rule("F7")
@pytest.mark.parametrize("record", [None, {"bytes": 8_737_536, "xxh3_128": "0" * 32}])
def test_a_shard_without_a_record(converted: Path, record: Json | None) -> None:
    def change(manifest: Json) -> None:
        del manifest["files"][SHARD]
        if record is not None:
            manifest["files"][SHARD] = record

    edit_json(converted / MANIFEST, change)
    with rejected(JsonFileError, str(converted / MANIFEST), SHARD):
        open_converted(converted)


def test_files_that_nothing_names_do_not_matter(converted: Path) -> None:
    (converted / "README.md").write_text("A model card.")
    (converted / ".gitattributes").write_text("*.safetensors filter=lfs")
    shutil.copy(converted / "config.json", converted / "stray.safetensors")
    verify(open_converted(converted))


@pytest.mark.rule("C1")
def test_a_scale_without_its_weight(converted: Path) -> None:
    rename_tensor(converted, f"{Q}.weight", f"{Q}.codes")
    with rejected(CompanionError, str(converted / SHARD), f"'{Q}.weight_scale'", f"{Q}.weight"):
        open_converted(converted)


@pytest.mark.rule("C1")
def test_an_int8_weight_without_its_scale(converted: Path) -> None:
    rename_tensor(converted, f"{Q}.weight_scale", f"{Q}.scale")
    with rejected(CompanionError, str(converted / SHARD), f"'{Q}.weight'", f"{Q}.weight_scale"):
        open_converted(converted)


@pytest.mark.rule("M4")
@pytest.mark.parametrize("path", [SMALL_Q, SMALL_K, SMALL_V])
def test_a_group_of_which_only_some_have_a_bias(small: Path, path: str) -> None:
    rename_tensor(small, f"{path}.bias", f"other{path[-6]}.bias")
    with rejected(CompanionError, str(shard_of(small, f"{path}.weight")), "bias", "_proj.weight'"):
        open_converted(small)


@pytest.mark.rule("C2")
@pytest.mark.parametrize(
    ("dropped", "named"),
    [("outlier_index", "outlier_weight"), ("outlier_weight", "outlier_index")],
)
def test_outlier_tensors_stand_in_pairs(converted: Path, dropped: str, named: str) -> None:
    drop_tensor(converted, f"{DOWN}.{dropped}")
    with rejected(CompanionError, str(converted / SHARD), f"'{DOWN}.{named}'"):
        open_converted(converted)


@pytest.mark.rule("C2")
def test_outlier_tensors_without_a_scale(converted: Path) -> None:
    for kind in ("outlier_index", "outlier_weight"):
        rename_tensor(converted, f"{DOWN}.{kind}", f"other.{kind}")
    with rejected(CompanionError, str(converted / SHARD), "'other.outlier_", "other.weight_scale"):
        open_converted(converted)


@pytest.mark.rule("C3")
@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("weight", {"shape": [64, 64]}),
        ("weight", {"shape": [64, 1, 64]}),
        ("weight", {"shape": [64, 64, 1, 1]}),
        ("weight", {"shape": [4096]}),
        ("weight", {"shape": [32, 128, 1]}),
        ("weight", {"dtype": "U8"}),
        ("weight", {"dtype": "F16", "shape": [64, 32]}),
        ("weight_scale", {"dtype": "I32"}),
        ("weight_scale", {"dtype": "F16", "shape": [128]}),
        ("weight_scale", {"shape": [64, 1]}),
        ("weight_scale", {"shape": [32, 2]}),
        ("outlier_index", {"dtype": "U32"}),
        ("outlier_index", {"dtype": "I64", "shape": [8]}),
        ("outlier_index", {"shape": [16, 1]}),
        ("outlier_index", {"dtype": "I16", "shape": [32]}),
        ("outlier_weight", {"dtype": "I16"}),
        ("outlier_weight", {"dtype": "F32", "shape": [64, 8]}),
        ("outlier_weight", {"shape": [16, 64]}),
        ("outlier_weight", {"shape": [1024]}),
        ("bias", {"dtype": "I16"}),
        ("bias", {"shape": [64, 1]}),
        ("bias", {"dtype": "F32", "shape": [32]}),
    ],
)
def test_a_companion_of_another_dtype_or_shape(
    small: Path, kind: str, fields: dict[str, object]
) -> None:
    shard = shard_of(small, f"{SMALL_Q}.weight")
    restate_tensor(small, f"{SMALL_Q}.{kind}", **fields)
    with rejected(CompanionError, str(shard), f"'{SMALL_Q}."):
        open_converted(small)


@pytest.mark.rule("C3")
def test_an_outlier_index_that_is_a_scalar(small: Path) -> None:
    """No axis at all: 4 of its bytes remain, the others become padding."""
    shard = shard_of(small, f"{SMALL_V}.outlier_index")

    def change(header: Json) -> None:
        begin, end = header[f"{SMALL_V}.outlier_index"]["data_offsets"]
        header[f"{SMALL_V}.outlier_index"].update(shape=[], data_offsets=[begin, begin + 4])
        rest = {"dtype": "U8", "shape": [end - begin - 4], "data_offsets": [begin + 4, end]}
        header["int8conv.padding.99"] = rest

    edit_header(shard, change)
    refresh(small)
    with rejected(CompanionError, str(shard), f"'{SMALL_V}.outlier_index'"):
        open_converted(small)


@pytest.mark.rule("C3")
def test_a_scale_beside_a_16_bit_weight_that_no_group_names(converted: Path) -> None:
    path = "model.layers.0.self_attn.o_proj"
    restate_tensor(converted, f"{path}.weight", dtype="F16", shape=[256, 128])

    def ungroup(manifest: Json) -> None:
        manifest["inputs"] = [g for g in manifest["inputs"] if g["linears"] != [path]]

    edit_json(converted / MANIFEST, ungroup)
    with rejected(CompanionError, str(converted / SHARD), f"'{path}.weight'", "I8", "F16"):
        open_converted(converted)


@pytest.mark.rule("C4")
@pytest.mark.parametrize("k", [0, 1, 8, 15])
def test_a_number_of_outlier_columns_that_is_not_a_multiple_of_16(converted: Path, k: int) -> None:
    def change(header: Json) -> None:
        for number, (kind, row_bytes) in enumerate((("outlier_index", 4), ("outlier_weight", 512))):
            entry = header[f"{DOWN}.{kind}"]
            begin, end = entry["data_offsets"]
            middle = begin + k * row_bytes
            entry.update(shape=[k] if number == 0 else [256, k], data_offsets=[begin, middle])
            rest = {"dtype": "U8", "shape": [end - middle], "data_offsets": [middle, end]}
            header[f"int8conv.padding.99{number}"] = rest

    edit_header(converted / SHARD, change)
    refresh(converted)
    named = (f"'{DOWN}.outlier_index'", "a multiple of 16", f"found {k}")
    with rejected(CompanionError, str(converted / SHARD), *named):
        open_converted(converted)


def columns_of(folder: Path, path: str) -> npt.NDArray[np.int32]:
    data = tensor_bytes(folder, f"{path}.outlier_index")
    columns: npt.NDArray[np.int32] = np.frombuffer(data, np.int32).copy()
    return columns


@pytest.mark.rule("C5")
@pytest.mark.parametrize(
    ("position", "value"),
    [(0, -1), (0, -(2**31)), (15, 704), (15, 2**31 - 1)],
)
def test_an_outlier_column_out_of_range(converted: Path, position: int, value: int) -> None:
    columns = columns_of(converted, DOWN)
    columns[position] = value
    write_tensor(converted, f"{DOWN}.outlier_index", columns.tobytes())
    with rejected(OutlierIndexError, str(converted / SHARD), f"'{DOWN}.outlier_index'", "0..703"):
        open_converted(converted)


@pytest.mark.rule("C5")
@pytest.mark.parametrize("order", ["descending", "twice", "swapped"])
def test_outlier_columns_that_do_not_ascend(converted: Path, order: str) -> None:
    columns = columns_of(converted, DOWN)
    if order == "descending":
        columns = columns[::-1].copy()
    elif order == "twice":
        columns[7] = columns[6]
    else:
        columns[[3, 4]] = columns[[4, 3]]
    write_tensor(converted, f"{DOWN}.outlier_index", columns.tobytes())
    with rejected(
        OutlierIndexError, str(converted / SHARD), f"'{DOWN}.outlier_index'", "ascending"
    ):
        open_converted(converted)


Groups = list[Json]


@pytest.mark.rule("M1")
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda groups: groups.pop(0), Q),
        (lambda groups: groups[0]["linears"].pop(), V),
        (lambda groups: groups.append(groups[0]), Q),
        (lambda groups: groups[1]["linears"].append(K), K),
        (lambda groups: groups[0]["linears"].insert(0, Q), Q),
        (lambda groups: groups[0]["linears"].append("model.ghost"), "model.ghost"),
        (lambda groups: groups[0]["linears"].append("model.norm"), "model.norm"),
        (lambda groups: groups.clear(), Q),
    ],
    ids=["no group", "not in it", "two", "in two", "twice in one", "absent", "no int8", "none"],
)
def test_a_linear_is_in_exactly_one_group(
    converted: Path, change: Callable[[Groups], object], named: str
) -> None:
    edit_json(converted / MANIFEST, lambda manifest: change(manifest["inputs"]))
    with rejected(CompanionError, str(converted / MANIFEST), f"'{named}.weight'"):
        open_converted(converted)


@pytest.mark.rule("M2")
@pytest.mark.parametrize(
    "fields", [{"in_features": 255}, {"in_features": 10**30}, {"outliers": 32}, {"outliers": 0}]
)
def test_a_group_that_does_not_say_what_its_linears_have(
    converted: Path, fields: dict[str, int]
) -> None:
    path = Q

    def change(manifest: Json) -> None:
        next(g for g in manifest["inputs"] if g["linears"][0] == path).update(fields)

    edit_json(converted / MANIFEST, change)
    with rejected(OutlierIndexError, str(converted / SHARD), f"'{path}.weight'"):
        open_converted(converted)


@pytest.mark.rule("M2")
def test_linears_of_a_group_with_different_in(converted: Path) -> None:
    """None of these three has outlier columns, but down has 704 inputs and the others 256."""
    down = "model.layers.5.mlp.down_proj"

    def merge(manifest: Json) -> None:
        assert manifest["inputs"][-1]["linears"] == [down]
        manifest["inputs"].pop()
        manifest["inputs"][-1]["linears"].append(down)

    edit_json(converted / MANIFEST, merge)
    with rejected(OutlierIndexError, str(converted / SHARD), f"'{down}.weight'", "704", "256"):
        open_converted(converted)


@pytest.mark.rule("M2")
def test_outlier_columns_that_a_group_does_not_share(small: Path) -> None:
    columns = columns_of(small, SMALL_K)
    unused = max(set(range(64)) - set(columns.tolist()))
    columns[-1] = unused if unused > columns[-2] else columns[-1] - 1
    assert (np.diff(columns) > 0).all()
    write_tensor(small, f"{SMALL_K}.outlier_index", columns.tobytes())
    shard = shard_of(small, f"{SMALL_K}.weight")
    with rejected(OutlierIndexError, str(shard), f"'{SMALL_K}.outlier_index'", "share"):
        open_converted(small)


@pytest.mark.rule("V1")
def test_unknown_fields_are_ignored(converted: Path) -> None:
    before = open_converted(converted)
    edit_json(converted / "config.json", section(later={"fields": [1]}, scheme="x"))

    def change(manifest: Json) -> None:
        manifest["later"] = {"a": [1, None]}
        manifest["source"]["licence"] = "MIT"
        manifest["options"]["later"] = True
        manifest["calibration"]["later"] = -1
        for group in manifest["inputs"]:
            group["later"] = "x"
        for record in manifest["files"].values():
            record["sha256"] = "0" * 64

    edit_json(converted / MANIFEST, change)
    refresh(converted)
    opened = open_converted(converted)
    assert opened.linears == before.linears
    assert opened.manifest.inputs == before.manifest.inputs
    verify(opened)
