"""``convert`` from end to end: the same bytes each time, provenance, and nothing left behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from int8conv import __version__
from int8conv.convert import converter
from int8conv.convert.converter import ConvertReport, convert_checkpoint
from int8conv.convert.outliers.choose import RANDOM
from int8conv.errors import (
    ArgumentError,
    ConvertedFormatError,
    HalfOverflowError,
    NonFiniteWeightError,
    NotFoundError,
    NotWritableError,
    OutputExistsError,
    OutputOverlapError,
)
from int8conv.formats.int8.folder import ConvertedFolder, open_converted
from int8conv.formats.int8.names import SCALE
from int8conv.formats.int8.summary import inspect_folder
from int8conv.formats.int8.verify import verify
from int8conv.formats.safetensors.stored import read_array

from ..checkpoints import LLAMA, OPT, random_tensors, write_checkpoint
from ..formats.damage import INDEX, edit_header, edit_json

Q, K, V, OUT = (f"model.layers.0.self_attn.{role}_proj" for role in "qkvo")
GATE, UP, DOWN = (f"model.layers.0.mlp.{role}_proj" for role in ("gate", "up", "down"))
TIED = LLAMA | {"tie_word_embeddings": True}
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def shards(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if name.endswith(".safetensors")}


def manifest(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "int8conv.json").read_text())
    return value


def load_all(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def convert_and_verify(source: Path, out: Path, **options: Any) -> ConvertedFolder:
    convert_checkpoint(source, out, **options)
    converted = open_converted(out)
    verify(converted)
    return converted


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def check_linear(found: dict[str, Tensor], path: str, weight: Tensor, half: torch.dtype) -> None:
    """The four tensors of a linear against SPEC.md 1.1 in torch."""
    columns = found.get(f"{path}.outlier_index", torch.empty(0, dtype=torch.int32)).long()
    inner = weight.float().clone()
    inner[:, columns] = 0
    largest = inner.abs().amax(dim=1)
    scale = torch.where(largest > 0, (largest / 127).clamp_min(2.0**-126), 0)
    quotient = torch.where(largest[:, None] > 0, inner / scale[:, None], 0)
    codes = quotient.round().clamp(-127, 127).to(torch.int8)
    assert torch.equal(found[f"{path}.weight"].squeeze(-1), codes)
    assert torch.equal(found[f"{path}.weight_scale"], scale)
    if len(columns):
        assert bits(found[f"{path}.outlier_weight"]) == bits(weight[:, columns].to(half))


def with_outliers(channels: list[int]) -> dict[str, Tensor]:
    """A Llama whose norms are 30 times larger in some channels, and the linears behind them smaller: the same function."""
    tensors = random_tensors(LLAMA)
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        for norm, roles in (
            ("input_layernorm", [f"self_attn.{role}_proj" for role in "qkv"]),
            ("post_attention_layernorm", ["mlp.gate_proj", "mlp.up_proj"]),
        ):
            tensors[f"{prefix}.{norm}.weight"][channels] *= 30
            for role in roles:
                tensors[f"{prefix}.{role}.weight"][:, channels] /= 30
    return tensors


@pytest.mark.parametrize("config", [LLAMA, OPT], ids=["llama", "opt"])
@pytest.mark.parametrize("outliers", ["calibrated", "none"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("source_dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_every_tensor(
    tmp_path: Path,
    config: dict[str, Any],
    outliers: str,
    dtype: str,
    source_dtype: torch.dtype,
) -> None:
    tensors = random_tensors(config, source_dtype)
    source = write_checkpoint(tmp_path / "source", config, tensors)
    converted = convert_and_verify(source, tmp_path / "out", outliers=outliers, dtype=dtype)
    found = load_all(tmp_path / "out")
    half = HALVES[dtype] if source_dtype == torch.float32 else source_dtype
    for name, tensor in tensors.items():
        path = name.removesuffix(".weight")
        if path in converted.linears and name.endswith(".weight"):
            check_linear(found, path, tensor, half)
        else:
            expected = tensor.to(half) if tensor.ndim > 1 else tensor
            assert found[name].dtype == expected.dtype
            assert bits(found[name]) == bits(expected)
    section = {"quant_method": "int8conv", "version": 1, "outliers": outliers, "dtype": dtype}
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    groups = written["quantization_config"].pop("groups")
    assert [path for group in groups for path in group["linears"]] == list(converted.linears)
    assert written == config | {"quantization_config": section}


def test_outlier_channels_are_kept_in_every_linear_that_they_feed(tmp_path: Path) -> None:
    channels = [5, 23, 58]
    tensors = with_outliers(channels)
    source = write_checkpoint(tmp_path / "source", tensors=tensors)
    converted = convert_and_verify(source, tmp_path / "out")
    found = load_all(tmp_path / "out")
    for group in ((Q, K, V), (GATE, UP)):
        indices = [found[f"{path}.outlier_index"].tolist() for path in group]
        assert set(channels) <= set(indices[0])
        assert len(indices[0]) == 16
        assert all(index == indices[0] for index in indices)
        for path in group:
            weight = tensors[f"{path}.weight"]
            check_linear(found, path, weight, torch.float16)
            assert bits(found[f"{path}.outlier_weight"]) == bits(weight[:, indices[0]])
            assert not found[f"{path}.weight"][:, indices[0]].any()
    entry = converted.manifest.inputs[0]
    assert (entry.linears, entry.in_features, entry.outliers) == ((Q, K, V), 64, 16)
    assert entry.threshold is not None


def test_a_report(tmp_path: Path, source: Path) -> None:
    report = convert_checkpoint(source, tmp_path / "out", outliers="none")
    shard_bytes = sum(map(len, shards(tmp_path / "out").values()))
    tensors = random_tensors(LLAMA)
    assert (report.tensors, report.quantized, report.outlier_columns) == (len(tensors), 14, 0)
    assert report.bytes_in == sum(t.nbytes for t in tensors.values())
    assert report.bytes_out == shard_bytes
    assert report.ratio == report.bytes_out / report.bytes_in
    assert (report.rounded, report.notes) == (0, ())
    assert report.seconds > 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounded_values_are_counted(tmp_path: Path, dtype: str) -> None:
    """Only those of matrices that are kept, and that changed."""
    tensors = random_tensors(TIED, torch.float32)
    kept = [n for n in tensors if "embed" in n]
    tensors["model.embed_tokens.weight"][:7] = 1.0
    source = write_checkpoint(tmp_path / "source", TIED, tensors)
    report = convert_checkpoint(source, tmp_path / "out", dtype=dtype, outliers="none")
    changed = sum(int((tensors[n].to(HALVES[dtype]).float() != tensors[n]).sum()) for n in kept)
    assert 0 < report.rounded == changed == manifest(tmp_path / "out")["rounded"]


@pytest.mark.parametrize(
    ("name", "row"), [("model.embed_tokens.weight", 70), (f"{Q}.weight", 3)]
)  # fmt: skip
def test_overflow_is_refused(tmp_path: Path, name: str, row: int) -> None:
    """In a quantized weight too, if it stands in an outlier column; outside of them int8 takes any range."""
    tensors = random_tensors(TIED, torch.float32)
    gain = tensors["model.layers.0.input_layernorm.weight"]
    gain[:] = 1.0
    gain[:16] = 50.0
    tensors[name].reshape(len(tensors[name]), -1)[row, 0] = 70000.0
    source = write_checkpoint(tmp_path / "source", TIED, tensors)
    with pytest.raises(HalfOverflowError, match=f"row {row} .*F16") as caught:
        convert_checkpoint(source, tmp_path / "out")
    assert (caught.value.tensor, caught.value.file) == (name, str(source / "model.safetensors"))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    convert_checkpoint(source, tmp_path / "out", dtype="bfloat16")


def test_integers_and_masks_are_kept_bit_for_bit(tmp_path: Path) -> None:
    """Of every length, also beyond a block."""
    generator = torch.Generator().manual_seed(0)
    extra = {
        "model.tid2eid": torch.randint(-(2**62), 2**62, (70_000,), generator=generator),
        "model.layers.0.table": torch.randint(-128, 128, (3, 5, 7), generator=generator).char(),
        "model.codes": torch.arange(600_000, dtype=torch.int32).reshape(2, -1).to(torch.uint8),
        "model.mask": torch.tensor([True, False, True]),
        "model.steps": torch.tensor(7),
        "model.none": torch.zeros(0, 4, dtype=torch.int16),
    }
    source = write_checkpoint(tmp_path / "source", LLAMA, random_tensors(LLAMA) | extra)
    converted = convert_and_verify(source, tmp_path / "out", outliers="none")
    found = load_all(tmp_path / "out")
    for name, tensor in extra.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    kinds = {row.label: row.tensors for row in inspect_folder(converted).kinds}
    assert kinds["integers and masks"] == 6
    assert kinds["int8 weights"] == 14


def test_one_file_and_several_give_the_same_shards(tmp_path: Path) -> None:
    for folder, count in (("one", 1), ("three", 3)):
        write_checkpoint(tmp_path / folder / "source", shards=count)
        convert_checkpoint(tmp_path / folder / "source", tmp_path / folder / "out")
    assert shards(tmp_path / "one/out") == shards(tmp_path / "three/out")
    assert contents(tmp_path / "one/out") == contents(tmp_path / "three/out")


@pytest.mark.parametrize("config", [LLAMA, OPT], ids=["llama", "opt"])
def test_jobs_do_not_change_the_bytes(tmp_path: Path, config: dict[str, Any]) -> None:
    source = write_checkpoint(tmp_path / "source", config, dtype=torch.float32)
    for jobs in (1, 4):
        convert_checkpoint(source, tmp_path / f"out{jobs}", jobs=jobs, max_shard_bytes=50_000)
    assert contents(tmp_path / "out1") == contents(tmp_path / "out4")


def test_converting_the_example_again_gives_the_same_bytes(
    example: Path, example_int8: Path, tmp_path: Path
) -> None:
    convert_checkpoint(example, tmp_path / "out", jobs=3)
    assert contents(tmp_path / "out") == contents(example_int8)


def test_no_file_holds_a_path_or_a_time(example_int8: Path, example: Path) -> None:
    written = contents(example_int8)
    for name in ("config.json", "int8conv.json", "model.safetensors.index.json"):
        assert str(example.parent).encode() not in written[name]
        assert str(example_int8.parent).encode() not in written[name]
        assert b"time" not in written[name]


@pytest.mark.parametrize("max_shard_bytes", [1, 20_000, 60_000])
def test_several_shards(tmp_path: Path, max_shard_bytes: int) -> None:
    source = write_checkpoint(tmp_path / "source", tensors=with_outliers([1]))
    convert_checkpoint(source, tmp_path / "whole")
    converted = convert_and_verify(source, tmp_path / "out", max_shard_bytes=max_shard_bytes)
    headers = converted.checkpoint.headers
    assert len(headers) > 1
    assert list(headers) == [
        f"model-{i + 1:05}-of-{len(headers):05}.safetensors" for i in range(len(headers))
    ]
    for header in headers.values():
        last = list(header.tensors.values())[-1]
        groups = {name.rpartition(".")[0].rpartition(".")[0] for name in header.tensors}
        assert last.end <= max_shard_bytes or len(groups - {"int8conv"}) == 1
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    found, expected = load_all(tmp_path / "out"), load_all(tmp_path / "whole")
    assert set(index["weight_map"]) == {n for n in expected if not n.startswith("int8conv.")}
    for name in index["weight_map"]:
        assert torch.equal(found[name], expected[name])
        with safe_open(tmp_path / "out" / index["weight_map"][name], "pt") as shard:
            assert name in set(shard.keys())


def test_the_tied_head_is_skipped_and_recorded(tmp_path: Path) -> None:
    tensors = random_tensors(TIED)
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    source = write_checkpoint(tmp_path / "source", TIED, tensors | head)
    report = convert_checkpoint(source, tmp_path / "out", outliers="none")
    assert report.tensors == len(tensors)
    assert manifest(tmp_path / "out")["skipped"] == {
        "lm_head.weight": "tied to the token embedding"
    }
    assert "lm_head.weight" not in manifest(tmp_path / "out")["source"]["tensors"]
    assert "lm_head.weight" not in load_all(tmp_path / "out")


@pytest.mark.parametrize("config", [TIED, OPT], ids=["llama", "opt"])
def test_a_checkpoint_of_the_base_model(tmp_path: Path, config: dict[str, Any]) -> None:
    """Saved without the head, its names lack the prefix; the numbers are the same."""
    tensors = random_tensors(config)
    base = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    convert_checkpoint(write_checkpoint(tmp_path / "full", config, tensors), tmp_path / "full-out")
    write_checkpoint(tmp_path / "base", config, base)
    converted = convert_and_verify(tmp_path / "base", tmp_path / "base-out")
    assert all(not path.startswith("model.") for path in converted.linears)
    expected = load_all(tmp_path / "full-out")
    for name, tensor in load_all(tmp_path / "base-out").items():
        assert torch.equal(tensor, expected[name if "padding" in name else f"model.{name}"])


@pytest.mark.parametrize(
    "changes",
    [
        {"do_layer_norm_before": False},
        {"word_embed_proj_dim": 32},
        {"do_layer_norm_before": False, "word_embed_proj_dim": 32},
        {"enable_bias": False},
        {"tie_word_embeddings": False},
        {"ffn_dim": 150},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_kinds_of_opt(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = OPT | changes
    tensors = random_tensors(config)
    source = write_checkpoint(tmp_path / "source", config, tensors)
    converted = convert_and_verify(source, tmp_path / "out")
    assert len(converted.linears) == 2 * 6
    assert ("model.decoder.project_in.weight" in tensors) == ("word_embed_proj_dim" in changes)
    found = load_all(tmp_path / "out")
    for name in tensors.keys() - {f"{path}.weight" for path in converted.linears}:
        assert bits(found[name]) == bits(tensors[name])


def test_without_a_tokenizer_random_tokens_are_noted(tmp_path: Path, source: Path) -> None:
    report = convert_checkpoint(source, tmp_path / "out")
    (note,) = report.notes
    assert "random tokens" in note
    assert manifest(tmp_path / "out")["calibration"]["texts"] == [None]


def test_small_files_are_copied(tmp_path: Path, source: Path) -> None:
    copied = {
        "tokenizer_config.json": b'{"a":  1}\r\n', "generation_config.json": b"{}", "vocab.txt": b"\xff\x00",
        "merges.txt": b"", "tokenizer.model": b"\x00" * 100, "chat_template.jinja": b"{{ x }}",
        "qwen.tiktoken": b"x", "LICENSE": b"free", "LICENSE.md": b"free", "NOTICE": b"n",
        "USE_POLICY.md": b"be kind",
    }  # fmt: skip
    not_copied = {
        "pytorch_model.bin": b"x", "pytorch_model.bin.index.json": b"{}", "README.md": b"x",
        "training_args.bin": b"x", "other.safetensors": b"x", "train.txt": b"x", "trainer_state.json": b"{}",
    }  # fmt: skip
    for name, data in (copied | not_copied).items():
        (source / name).write_bytes(data)
    (source / "folder.json").mkdir()
    convert_and_verify(source, tmp_path / "out", outliers="none")
    out = contents(tmp_path / "out")
    own = {"config.json", "int8conv.json", "model.safetensors.index.json"}
    assert set(out) == set(copied) | own | set(shards(tmp_path / "out"))
    assert {name: out[name] for name in copied} == copied
    files = manifest(tmp_path / "out")["files"]
    assert set(files) == set(out) - {"int8conv.json"}
    for name, data in out.items():
        if name in files and "tensors" not in files[name]:
            assert files[name] == {"bytes": len(data), "xxh3_128": xxhash.xxh3_128_hexdigest(data)}


def test_provenance(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA, torch.bfloat16)
    source = write_checkpoint(tmp_path / "some-model", tensors=tensors, shards=2)
    convert_checkpoint(source, tmp_path / "out")
    value = manifest(tmp_path / "out")
    assert (value["format"], value["version"]) == ("int8conv", 1)
    assert value["generator"] == f"int8conv {__version__}"
    assert (value["source"]["id"], value["source"]["revision"]) == ("some-model", None)
    assert value["options"] == {
        "outliers": "calibrated", "dtype": "float16", "max_shard_bytes": 5_000_000_000, "keep": [], "quantize": [], "include": [], "exclude": [],
        "outlier_rule": "error", "max_outliers": 0.01, "heavy_tails": "16bit", "rounding": "nearest",
        "calibration_tokens": None,
    }  # fmt: skip
    assert value["source"]["tensors"] == {
        name: {
            "dtype": "BF16",
            "shape": list(tensor.shape),
            "xxh3_128": xxhash.xxh3_128_hexdigest(bits(tensor)),
        }
        for name, tensor in tensors.items()
    }
    inputs = value["inputs"]
    assert [entry["linears"] for entry in inputs[:4]] == [[Q, K, V], [OUT], [GATE, UP], [DOWN]]
    assert [entry["in_features"] for entry in inputs[:4]] == [64, 64, 64, 160]
    assert all(entry["threshold"] > 0 for entry in inputs[::4])  # behind norms: no heavy tails


def test_checksums_of_what_was_written(example_int8: Path) -> None:
    converted = open_converted(example_int8)
    for shard, header in converted.checkpoint.headers.items():
        data = (example_int8 / shard).read_bytes()
        record = converted.manifest.files[shard]
        start = header.payload_offset
        assert (record.bytes, record.header_bytes) == (len(data), start)
        assert record.xxh3_128 == xxhash.xxh3_128_hexdigest(data[:start])
        assert record.tensors == {
            info.name: xxhash.xxh3_128_hexdigest(data[start + info.begin : start + info.end])
            for info in header.tensors.values()
            if not info.name.startswith("int8conv.padding.")
        }


def test_the_example_is_within_half_a_scale(example: Path, example_int8: Path) -> None:
    """Every dequantized weight of the trained model, outside of its outlier columns."""
    converted = open_converted(example_int8)
    source = load_file(example / "model.safetensors")
    kept = 0
    for path, linear in converted.linears.items():
        codes, scale = read_array(linear.weight)[..., 0], read_array(linear.scale)
        weight = source[f"{path}.weight"].double().numpy()
        index = linear.outlier_index
        columns: list[int] = read_array(index).tolist() if index is not None else []
        error = np.abs(codes * scale[:, None].astype(np.float64) - weight)
        error[:, columns] = 0
        assert (error <= scale[:, None] * (0.5 + 2.0**-17)).all()
        kept += len(columns)
    assert kept > 0


# What is left behind


def interrupt(stage: str, done_at_least: float) -> Callable[[str, int, int], None]:
    def progress(now: str, done: int, total: int) -> None:
        if now == stage and done >= done_at_least * total:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize(
    ("stage", "part"), [("calibrate", 0), ("calibrate", 0.5), ("convert", 0), ("convert", 0.5), ("convert", 1)]
)  # fmt: skip
@pytest.mark.parametrize("jobs", [1, 4])
def test_an_interrupt_leaves_no_output_and_the_next_run_goes_on(
    tmp_path: Path, source: Path, stage: str, part: float, jobs: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(source, tmp_path / "out", jobs=jobs, progress=interrupt(stage, part))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.partial", "source"]
    report = convert_checkpoint(source, tmp_path / "out", jobs=jobs)
    assert report.resumed > 0 or (stage, part) in {
        ("calibrate", 0),
        ("calibrate", 0.5),
        ("convert", 0),
    }
    convert_checkpoint(source, tmp_path / "undisturbed")
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source", "undisturbed"]


@pytest.mark.parametrize(("stage", "part"), [("calibrate", 0.5), ("convert", 0.5), ("convert", 1)])
def test_an_interrupt_keeps_the_old_output(
    tmp_path: Path, source: Path, stage: str, part: float
) -> None:
    convert_checkpoint(source, tmp_path / "out", outliers="none")
    before = contents(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(source, tmp_path / "out", force=True, progress=interrupt(stage, part))
    assert contents(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.partial", "out", "source"]


def test_an_error_leaves_nothing_and_keeps_the_old_output(tmp_path: Path, source: Path) -> None:
    convert_checkpoint(source, tmp_path / "out", outliers="none")
    before = contents(tmp_path / "out")
    tensors = random_tensors(LLAMA)
    tensors["lm_head.weight"][5] = float("nan")
    write_checkpoint(tmp_path / "source", tensors=tensors)
    for out in (tmp_path / "out", tmp_path / "new"):
        with pytest.raises(NonFiniteWeightError):
            convert_checkpoint(source, out, force=True)
    assert contents(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_force_replaces_a_converted_folder(tmp_path: Path, source: Path) -> None:
    convert_checkpoint(source, tmp_path / "out", outliers="none", max_shard_bytes=1)
    convert_checkpoint(source, tmp_path / "fresh", outliers="calibrated")
    convert_checkpoint(source, tmp_path / "out", outliers="calibrated", force=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "out", "source"]


def test_parents_of_the_output_are_made(tmp_path: Path, source: Path) -> None:
    convert_and_verify(source, tmp_path / "a" / "b" / "out", outliers="none")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "kind", ["folder", "full folder", "file", "link", "dangling link", "source"]
)
def test_foreign_output_is_never_touched(
    tmp_path: Path, source: Path, kind: str, force: bool
) -> None:
    out = source if kind == "source" else tmp_path / "out"
    if "folder" in kind:
        out.mkdir()
    if kind == "full folder":
        (out / "thesis.tex").write_text("years of work")
    if kind == "file":
        out.write_text("text")
    if "link" in kind:
        out.symlink_to(tmp_path / "nowhere" if kind == "dangling link" else source)
    before = sorted(path for path in tmp_path.rglob("*"))
    overlaps = kind in ("source", "link")  # which leads to the source
    with pytest.raises(OutputOverlapError if overlaps else OutputExistsError) as caught:
        convert_checkpoint(source, out, force=force, outliers="none")
    assert caught.value.file == str(out)
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_a_link_to_a_converted_folder_is_not_replaced(tmp_path: Path, source: Path) -> None:
    convert_checkpoint(source, tmp_path / "real", outliers="none")
    (tmp_path / "out").symlink_to("real")
    with pytest.raises(OutputExistsError):
        convert_checkpoint(source, tmp_path / "out", outliers="none", force=True)
    assert (tmp_path / "out").is_symlink()


def test_a_parent_that_is_a_file(tmp_path: Path, source: Path) -> None:
    (tmp_path / "file").write_text("text")
    for out in (tmp_path / "file" / "out", tmp_path / "file" / "a" / "out"):
        with pytest.raises(NotWritableError):
            convert_checkpoint(source, out, outliers="none")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "source"]


# Options and the function's own name


@pytest.mark.parametrize(
    "options",
    [{"outliers": "some"}, {"dtype": "float8"}, {"max_shard_bytes": 0}, {"jobs": 0}, {"jobs": -1}],
    ids=str,
)
def test_options_that_cannot_be(tmp_path: Path, source: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(options))):
        convert_checkpoint(source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_strings_are_paths(tmp_path: Path, source: Path) -> None:
    assert isinstance(
        convert_checkpoint(str(source), str(tmp_path / "out"), outliers="none"), ConvertReport
    )


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such folder"):
        convert_checkpoint(tmp_path / "source", tmp_path / "out")


def test_progress_ends_where_it_should(tmp_path: Path, source: Path) -> None:
    told: list[tuple[str, int, int]] = []
    report = convert_checkpoint(
        source, tmp_path / "out", progress=lambda *args: told.append(args), jobs=4
    )
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert stages == ["calibrate", "convert"]
    done = [d for stage, d, _ in told if stage == "convert"]
    assert done == sorted(done)
    assert told[-1] == ("convert", report.bytes_in, report.bytes_in)


def test_a_plain_conversion_imports_no_torch(tmp_path: Path, source: Path) -> None:
    code = f"""
import sys
import int8conv
report = int8conv.convert_checkpoint({str(source)!r}, {str(tmp_path / "out")!r}, outliers="none")
assert isinstance(report, int8conv.ConvertReport)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("damage", ["removed", "malformed"])
def test_without_a_usable_tokenizer_the_example_is_calibrated_on_random_tokens(
    tmp_path: Path, example: Path, damage: str
) -> None:
    folder = Path(shutil.copytree(example, tmp_path / "source"))
    tokenizer = folder / "tokenizer.json"
    tokenizer.unlink() if damage == "removed" else tokenizer.write_text('{"model": 1}')
    report = convert_checkpoint(folder, tmp_path / "out")
    assert report.notes == (RANDOM,)


@pytest.mark.parametrize("damage", ["index", "layout", "companion"])
def test_what_our_own_reader_refuses_does_not_appear(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """Whatever fault of this program or source should lead to such a result."""
    write = converter.write_metadata_files

    def damaged(staging: Path, *arguments: Any) -> None:
        write(staging, *arguments)
        (shard,) = staging.glob("*.safetensors")
        if damage == "index":
            edit_json(staging / INDEX, lambda index: index["weight_map"].pop(f"{Q}.{SCALE}"))
        elif damage == "layout":
            edit_header(shard, lambda header: None, alignment=8)
        else:
            edit_header(shard, lambda header: header[f"{Q}.{SCALE}"].update(dtype="I32"))

    monkeypatch.setattr(converter, "write_metadata_files", damaged)
    with pytest.raises(ConvertedFormatError, match="the result would not be readable") as caught:
        convert_checkpoint(source, tmp_path / "out", outliers="none")
    assert caught.value.file == str(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    convert_checkpoint(source, tmp_path / "out", outliers="none")
    verify(tmp_path / "out")
