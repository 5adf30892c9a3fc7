"""Whatever is wrong with the input: one line that names it, exit code 1, and no trace of an output."""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from int8conv.convert.converter import convert_checkpoint
from int8conv.formats.int8.folder import open_converted
from int8conv.formats.safetensors.stored import StoredTensor

from ..checkpoints import LLAMA, random_tensors, write_checkpoint
from .helpers import (
    check_error_line,
    check_refused,
    edit_header,
    edit_json,
    run,
    run_apart,
    snapshot,
    succeed,
    without_workspace,
    write_raw_header,
)

Damage = Callable[[Path], object]
"""Does something to a folder."""

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
Q = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"
EMBED = "model.embed_tokens.weight"


def refuse_convert(
    tmp_path: Path, source: Path, *words: object, flags: tuple[str, ...] = (), kept: bool = False
) -> None:
    """``convert`` says so, and changes nothing below ``tmp_path``; where it may go on later, ``kept`` its workspace is."""
    before = snapshot(tmp_path)
    check_refused(run("convert", source, tmp_path / "out", *flags), *words)
    after = snapshot(tmp_path)
    assert without_workspace(after) == before
    assert (after != before) == kept


def after_header(change: Callable[[dict[str, Any]], object]) -> Damage:
    return lambda folder: edit_header(folder / FILE, change)


def after_config(**changes: object) -> Damage:
    return lambda folder: edit_json(folder / "config.json", lambda config: config.update(changes))


def with_tensors(**changes: Tensor) -> Damage:
    """Written again with some tensors added or replaced."""
    return lambda folder: write_checkpoint(folder, tensors=random_tensors(LLAMA) | changes)


def with_value(name: str, row: int, value: float) -> Damage:
    def damage(folder: Path) -> None:
        tensors = random_tensors(LLAMA)
        tensors[name][row] = value
        write_checkpoint(folder, tensors=tensors)

    return damage


def truncate(name: str, nbytes: int) -> Damage:
    """Cut to so many bytes, or (negative) by so many."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:nbytes])


def replace_file(name: str, data: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(data)


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def shift(name: str, begin: int, end: int) -> Damage:
    """Move a tensor's offsets."""

    def change(header: dict[str, Any]) -> None:
        offsets = header[name]["data_offsets"]
        header[name]["data_offsets"] = [offsets[0] + begin, offsets[1] + end]

    return after_header(change)


def grow_last(header: dict[str, Any]) -> None:
    """One more row for the tensor at the end of the file, which has none."""
    last = max(
        (e for n, e in header.items() if n != "__metadata__"), key=lambda e: e["data_offsets"][1]
    )
    last["data_offsets"][1] += last["shape"][1] * 2 if last["shape"][1:] else 2
    last["shape"][0] += 1


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def file_instead(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("x")


def empty_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def folder_instead_of_shard(folder: Path) -> None:
    (folder / SECOND).unlink()
    (folder / SECOND).mkdir()


def without_weights(folder: Path) -> None:
    (folder / FILE).unlink()
    (folder / "model.gguf").write_bytes(b"x")


SOURCES: dict[str, tuple[Damage, list[str]]] = {
    # The folder and its files
    "no such folder": (no_folder, ["/source: no such folder"]),
    "a file": (file_instead, ["/source: not a folder"]),
    "an empty folder": (
        empty_folder,
        ["/source: no checkpoint", FILE, "found no weights"],
    ),
    "weights of another kind": (without_weights, ["/source: no checkpoint", "found model.gguf"]),
    "no config": (remove("config.json"), ["/source/config.json: cannot be read"]),
    # The config
    "config is not JSON": (replace_file("config.json", b"{'a': 1}"), ["/config.json: not JSON"]),
    "config is not UTF-8": (replace_file("config.json", b"\xff\xfe{}"), ["/config.json: not JSON"]),
    "config is no object": (
        replace_file("config.json", b"[1]"), ["/config.json", "expected an object, found list"],
    ),
    "config nested without end": (replace_file("config.json", b"[" * 100_000), ["/config.json: not JSON"]),
    "no hidden_size": (
        after_config(hidden_size=None), ["/config.json", "'hidden_size'", "expected an integer > 0", "found None"],
    ),
    "hidden_size is text": (after_config(hidden_size="64"), ["/config.json", "'hidden_size'", "found '64'"]),
    "hidden_size is another": (
        after_config(hidden_size=32, head_dim=16), [FILE, EMBED, "expected [96, 32], found [96, 64]"],
    ),
    "no layers": (after_config(num_hidden_layers=0), ["'num_hidden_layers'", "found 0"]),
    "more layers than there are": (
        after_config(num_hidden_layers=3), ["/source: ", "model.layers.2.input_layernorm.weight", "missing"],
    ),
    # A safetensors file
    "an empty file": (replace_file(FILE, b""), [FILE, "expected at least 8 bytes, found 0"]),
    "seven bytes": (truncate(FILE, 7), [FILE, "expected at least 8 bytes, found 7"]),
    "ends in the header": (truncate(FILE, 100), [FILE, "ends within its header", "found 100"]),
    "ends in the payload": (truncate(FILE, -1), [FILE, "tensor '", "past the end of the file"]),
    "too long": (
        lambda f: (f / FILE).write_bytes((f / FILE).read_bytes() + b"x"), [FILE, "bytes after the last tensor"],
    ),
    "header too long": (
        replace_file(FILE, struct.pack("<Q", 10**9) + b"{}"),
        [FILE, "header is too long", "expected at most 100000000 bytes, found 1000000000"],
    ),
    "header length of all ones": (replace_file(FILE, b"\xff" * 64), [FILE, "header is too long"]),
    "another kind of file": (replace_file(FILE, b"PK\x03\x04" + bytes(60)), [FILE]),
    "header is not JSON": (lambda f: write_raw_header(f / FILE, b"{nothing}"), [FILE, "header is not JSON"]),
    "header is an array": (lambda f: write_raw_header(f / FILE, b"[]"), [FILE, "expected a header that starts with '{'"]),
    "header is not UTF-8": (lambda f: write_raw_header(f / FILE, b'{"\xff": 1}'), [FILE, "header is not JSON"]),
    "a name twice": (
        lambda f: write_raw_header(f / FILE, b'{"a": {}, "a": {}}'), [FILE, "'a'", "twice"],
    ),
    "an entry lacks its dtype": (
        after_header(lambda h: h[Q].pop("dtype")), [FILE, Q, "found", "shape, data_offsets"],
    ),
    "metadata is not text": (after_header(lambda h: h.update(__metadata__={"a": 1})), [FILE, "__metadata__"]),
    "a negative size": (after_header(lambda h: h[Q].update(shape=[-64, -64])), [FILE, Q, "malformed shape"]),
    "overlapping tensors": (shift(Q, -2, -2), [FILE, "overlaps the previous tensor"]),
    "a hole": (shift(Q, 2, 2), [FILE, "tensor '"]),
    "offsets out of range": (
        after_header(grow_last), [FILE, "tensor '", "past the end of the file", "truncated"],
    ),
    "offsets far away": (shift(Q, 10**9, 10**9), [FILE, "tensor '"]),
    "offsets backwards": (shift(Q, 10**6, 0), [FILE, Q, "run backwards"]),
    "shape and bytes disagree": (
        after_header(lambda h: h[Q].update(shape=[64, 63])),
        [FILE, Q, "F16 [64, 63]", "expected 8064 bytes, found 8192"],
    ),
    "a shape beyond all sizes": (after_header(lambda h: h[Q].update(shape=[2**40, 2**40])), [FILE, Q]),
    "a dtype that nobody knows": (
        after_header(lambda h: h[Q].update(dtype="F4")), [FILE, Q, "unsupported dtype", "found F4"],
    ),
    # Tensors
    "a weight of integers": (
        with_tensors(**{Q: torch.ones(64, 64, dtype=torch.int64)}),
        [FILE, Q, "already quantized", "found integers (I64)"],
    ),
    "a weight of FP8 without scales": (
        with_tensors(**{Q: torch.ones(64, 64).to(torch.float8_e4m3fn)}), [FILE, Q, "has no scales", f"{Q}_scale_inv"],
    ),
    "scales of another shape": (
        with_tensors(**{Q: torch.ones(64, 64).to(torch.float8_e4m3fn), f"{Q}_scale": torch.ones(3, 2)}),
        [FILE, f"{Q}_scale", "expected [], [64], [64, 1] or [1, 1]", "found [3, 2]"],
    ),
    "a bias of two axes": (
        with_tensors(**{Q.replace("weight", "bias"): torch.ones(1, 64).half()}),
        [FILE, "q_proj.bias", "expected [64], found [1, 64]"],
    ),
    "a weight of integers beside the model's": (
        with_tensors(**{"model.layers.0.extra.weight": torch.ones(64, 64).char()}),
        [FILE, "model.layers.0.extra.weight", "already quantized", "integers (I8)"],
    ),
    "a tensor short": (
        lambda f: write_checkpoint(f, tensors={n: t for n, t in random_tensors(LLAMA).items() if n != Q}),
        ["/source: ", Q, "missing"],
    ),
    "NaN in a quantized weight": (with_value(Q, 3, float("nan")), [FILE, Q, "NaN or infinity in row 3"]),
    "infinity in a quantized weight": (with_value(Q, 63, float("inf")), [FILE, Q, "NaN or infinity in row 63"]),
    "NaN in a norm": (with_value(NORM, 60, float("nan")), [FILE, NORM, "NaN or infinity in row 60"]),
    "infinity in the head": (
        with_value("lm_head.weight", 95, float("-inf")), [FILE, "lm_head.weight", "NaN or infinity in row 95"],
    ),
    "NaN in the embedding": (with_value(EMBED, 1, float("nan")), [FILE, EMBED, "NaN or infinity in row 1"]),
    # Quantized already
    "GPTQ": (
        after_config(quantization_config={"quant_method": "gptq", "bits": 4}),
        ["/config.json", "already quantized", "'gptq'"],
    ),
    "bitsandbytes": (
        with_tensors(**{Q.replace("weight", "SCB"): torch.ones(64)}), [FILE, "q_proj.SCB", "already quantized", "bitsandbytes"],
    ),
    "GPTQ without a section": (
        with_tensors(**{Q.replace("weight", "qweight"): torch.ones(8, 64, dtype=torch.int32)}),
        [FILE, "q_proj.qweight", "already quantized", "GPTQ"],
    ),
    "compressed-tensors": (
        after_config(compression_config={"format": "int-quantized"}), ["/config.json", "compression_config"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("outliers", ["calibrated", "none"])
@pytest.mark.parametrize("case", SOURCES)
def test_a_source_that_cannot_be_converted(tmp_path: Path, case: str, outliers: str) -> None:
    source = write_checkpoint(tmp_path / "source")
    damage, words = SOURCES[case]
    damage(source)
    refuse_convert(tmp_path, source, *words, flags=("--outliers", outliers))


SHARDED: dict[str, tuple[Damage, list[str]]] = {
    "a shard is missing": (remove(SECOND), [f"/source/{SECOND}: shard is missing", INDEX]),
    "a shard is a folder": (folder_instead_of_shard, [SECOND, "missing"]),
    "a shard ends early": (truncate(SECOND, -100), [SECOND, "tensor '", "truncated"]),
    "index is not JSON": (replace_file(INDEX, b"weight_map"), [f"/source/{INDEX}: not JSON"]),
    "index is no object": (replace_file(INDEX, b"[]"), [INDEX, "expected an object, found list"]),
    "no weight_map": (replace_file(INDEX, b"{}"), [INDEX, "no usable weight_map"]),
    "weight_map is empty": (replace_file(INDEX, b'{"weight_map": {}}'), [INDEX, "no usable weight_map"]),
    "a file name is a number": (
        lambda f: edit_json(f / INDEX, lambda v: v["weight_map"].update({Q: 1})), [INDEX, Q, "found 1"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SHARDED)
def test_shards_that_do_not_hold_together(tmp_path: Path, case: str) -> None:
    source = write_checkpoint(tmp_path / "source", shards=2)
    damage, words = SHARDED[case]
    damage(source)
    refuse_convert(tmp_path, source, *words)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "..", ".", "", "a/../../b", "a\\b", "a\0b"]
)
def test_an_index_that_leaves_the_folder(tmp_path: Path, name: str) -> None:
    source = write_checkpoint(tmp_path / "source", shards=2)
    shutil.copy(source / SECOND, tmp_path / "secret")
    edit_json(source / INDEX, lambda value: value["weight_map"].update({Q: name}))
    refuse_convert(tmp_path, source, INDEX, Q, "outside the folder", repr(name))


def test_a_file_name_that_is_too_long(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", shards=2)
    edit_json(source / INDEX, lambda value: value["weight_map"].update({Q: "x" * 300}))
    refuse_convert(tmp_path, source, "x" * 300)


def test_a_source_that_was_converted_already(tmp_path: Path, source: Path) -> None:
    convert_checkpoint(source, tmp_path / "first", outliers="none")
    refuse_convert(tmp_path, tmp_path / "first", "config.json", "already quantized", "'int8conv'")


def test_a_float32_value_that_does_not_fit(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA, torch.float32)
    tensors[EMBED][7, 0] = 1e6
    source = write_checkpoint(tmp_path / "source", tensors=tensors)
    refuse_convert(tmp_path, source, FILE, EMBED, "row 7", "does not fit F16", "--dtype bfloat16")


# Output


def test_an_existing_output_is_not_touched(tmp_path: Path, source: Path) -> None:
    convert_checkpoint(source, tmp_path / "out", outliers="none")
    refuse_convert(tmp_path, source, "/out: output already exists", "--force")


@pytest.mark.parametrize("flags", [(), ("--force",)], ids=str)
def test_a_foreign_folder_is_not_touched(
    tmp_path: Path, source: Path, flags: tuple[str, ...]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    words = ("/out: output", "exists", "replace")
    refuse_convert(tmp_path, source, *words, flags=flags)


def test_a_parent_that_is_a_file(tmp_path: Path, source: Path) -> None:
    (tmp_path / "file").write_text("text")
    before = snapshot(tmp_path)
    out = tmp_path / "file" / "out"
    check_refused(run("convert", source, out, "--outliers", "none"), out, "cannot be written")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_parent_that_may_not_be_written(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """The system's answer is put in its mouth: tests may run as root, whom nothing stops."""

    def refuse(path: Path, *args: object, **kwargs: object) -> None:
        raise OSError(error, os.strerror(error), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    refuse_convert(
        tmp_path, source, "/out: cannot be written", os.strerror(error), flags=("--outliers", "none")
    )  # fmt: skip


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_parent_that_really_may_not_be_written(tmp_path: Path, source: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        refuse_convert(tmp_path, source, "cannot be written", flags=("--outliers", "none"))
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.parametrize("call", ["pwrite", "ftruncate", "fsync"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_left(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: int
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, call, refuse)
    refuse_convert(tmp_path, source, "/out: no space left", flags=("--outliers", "none"), kept=True)


def test_space_that_ends_on_the_way(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short writes, then none."""
    convert_checkpoint(source, tmp_path / "out", outliers="none")
    pwrite, written = os.pwrite, 0

    def fill(fd: int, data: Any, offset: int) -> int:
        nonlocal written
        if written > 50_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = pwrite(fd, data[: 1 + len(data) // 2], offset)
        written += count
        return count

    monkeypatch.setattr(os, "pwrite", fill)
    refuse_convert(
        tmp_path, source, "no space left", flags=("--outliers", "none", "--force"), kept=True
    )
    assert written > 50_000


def test_really_no_space_left(tmp_path: Path, source: Path) -> None:
    """Files may not grow beyond 50 kB in that process."""
    code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
from int8conv.cli import main
main(["convert", *sys.argv[1:], "--outliers", "none"], prog_name="int8conv")
"""
    before = snapshot(tmp_path)
    done = run_apart(source, tmp_path / "out", code=code)
    assert (done.returncode, done.stdout) == (1, "")
    check_error_line(done.stderr, tmp_path / "out", "no space left")
    assert without_workspace(snapshot(tmp_path)) == before


# Converted folders


def first_index(folder: Path) -> StoredTensor:
    """The outlier columns of the first linear that has some."""
    linears = open_converted(folder).linears.values()
    return next(linear.outlier_index for linear in linears if linear.outlier_index is not None)


def write_columns(folder: Path, columns: dict[int, int]) -> str:
    """Overwrite some outlier columns; the tensor's name."""
    index = first_index(folder)
    with index.file.path.open("r+b") as file:
        for position, column in columns.items():
            file.seek(index.offset + 4 * position)
            file.write(struct.pack("<i", column))
    return index.name


def rename(folder: Path, old: str, new: str) -> None:
    """Rename a tensor in the shard and in the index: names of one length, so that nothing moves."""
    assert len(old) == len(new)
    (shard,) = folder.glob("*.safetensors")
    for path in (shard, folder / INDEX):
        path.write_bytes(path.read_bytes().replace(f'"{old}"'.encode(), f'"{new}"'.encode()))


def without(kind: str) -> Damage:
    """Take one of its companions from the first linear that has outlier columns."""

    def damage(folder: Path) -> None:
        path = first_index(folder).name.rpartition(".")[0]
        rename(folder, f"{path}.{kind}", f"{path}.{'x' * len(kind)}")

    return damage


def shard_version(folder: Path) -> None:
    (shard,) = folder.glob("*.safetensors")
    edit_header(shard, lambda header: header["__metadata__"].update(version="9"))


def section(**changes: object) -> Damage:
    return lambda folder: edit_json(
        folder / "config.json", lambda config: config["quantization_config"].update(changes)
    )


SHARD = "model-00001-of-00001.safetensors"
BROKEN: dict[str, tuple[Damage, list[str]]] = {
    "no such folder": (no_folder, ["/converted: no such folder"]),
    "a file": (file_instead, ["/converted: not a folder"]),
    "version of the config": (
        section(version=2), ["/config.json: unknown format version", "expected 1, found 2"],
    ),
    "version is text": (section(version="1"), ["/config.json: unknown format version", "found '1'"]),
    "version of the manifest": (
        lambda f: edit_json(f / "int8conv.json", lambda v: v.update(version=2)),
        ["/int8conv.json: unknown format version", "expected 1, found 2"],
    ),
    "version of a shard": (shard_version, [SHARD, "unknown format version", "9"]),
    "no manifest": (remove("int8conv.json"), ["/converted: not an int8conv folder", "int8conv.json"]),
    "manifest is not JSON": (replace_file("int8conv.json", b"{"), ["/int8conv.json: not JSON"]),
    "a field of the manifest": (
        lambda f: edit_json(f / "int8conv.json", lambda v: v.pop("inputs")),
        ["/int8conv.json: field 'inputs' is missing or malformed"],
    ),
    "no index of shards": (remove(INDEX), [INDEX]),
    "no shard": (remove(SHARD), [SHARD, "shard is missing"]),
    "a shard ends early": (truncate(SHARD, -1), [SHARD]),
    "no scale": (without("weight_scale"), [SHARD, "the companion of", "weight_scale, found no such tensor"]),
    "no outlier weight": (without("outlier_weight"), [SHARD, "outlier_index", "outlier_weight, found no such tensor"]),
    "no outlier index": (without("outlier_index"), [SHARD, "outlier_weight", "outlier_index, found no such tensor"]),
    "a column out of range": (
        lambda f: write_columns(f, {15: 1 << 20}), [SHARD, "outlier_index", "out of range", "expected 0..", "1048576"],
    ),
    "a negative column": (lambda f: write_columns(f, {0: -1}), [SHARD, "outlier_index", "out of range", "found -1.."]),
    "columns that descend": (
        lambda f: write_columns(f, {4: 9, 5: 8}), [SHARD, "outlier_index", "not strictly ascending"],
    ),
    "a column twice": (lambda f: write_columns(f, {4: 9, 5: 9}), [SHARD, "outlier_index", "not strictly ascending"]),
    "a file outside the folder": (
        lambda f: edit_json(f / INDEX, lambda v: v["weight_map"].update({EMBED: "../x"})), [INDEX, EMBED, "'../x'"],
    ),
}  # fmt: skip

COMMANDS: dict[str, tuple[str, ...]] = {
    "inspect": (),
    "footprint": (),
    "generate": ("--prompt", "Once", "--max-new-tokens", "1"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", BROKEN)
def test_a_converted_folder_that_cannot_be_used(
    converted: Path, tmp_path: Path, case: str, command: str
) -> None:
    damage, words = BROKEN[case]
    damage(converted)
    before = snapshot(tmp_path)
    result = run(command, converted, *COMMANDS[command])
    if (case, command) in {("no manifest", "generate"), ("no manifest", "footprint")}:
        words = ["int8conv.json"]
    check_refused(result, *words)
    assert result.stdout == ""
    assert snapshot(tmp_path) == before


def test_inspect_wants_a_converted_folder(source: Path) -> None:
    check_refused(run("inspect", source), source, "not an int8conv folder", "int8conv convert")


@pytest.mark.parametrize("command", ["footprint", "generate"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (remove("config.json"), ["/config.json: cannot be read"]),
        (truncate(FILE, -1), [FILE, "past the end of the file"]),
    ],
    ids=["no config", "truncated"],
)
def test_a_source_that_cannot_be_run(
    source: Path, damage: Damage, words: list[str], command: str
) -> None:
    damage(source)
    check_refused(run(command, source, *COMMANDS[command]), *words)


UNRUNNABLE: dict[str, tuple[Damage, list[str]]] = {
    "unknown model_type": (after_config(model_type="mamba"), ["/config.json", "'mamba'", "expected one of apertus, arcee"]),
    "no model_type": (after_config(model_type=None), ["/config.json", "model_type None"]),
    "rope_scaling": (
        after_config(rope_scaling={"rope_type": "ntk", "factor": 8.0}),
        ["/config.json", "'rope_scaling.rope_type'", "expected one of default, linear", "found 'ntk'"],
    ),
    "rope_scaling of old": (
        after_config(rope_scaling={"type": "xpos", "factor": 2.0}), ["'rope_scaling.type'", "found 'xpos'"],
    ),
    "rope_parameters": (
        after_config(rope_parameters={"rope_theta": 1e4, "factor": 8.0}), ["'rope_parameters.factor'", "found 8.0"],
    ),
    "an unknown activation": (after_config(hidden_act="mish"), ["'hidden_act'", "one of silu", "found 'mish'"]),
    "heads that do not divide": (
        after_config(num_key_value_heads=3), ["'num_key_value_heads'", "a divisor of 4, found 3"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNRUNNABLE)
def test_a_model_that_the_runtime_does_not_know(source: Path, tmp_path: Path, case: str) -> None:
    """It can be converted, by names and shapes, and the size of its weights predicted; what would run it names what it lacks."""
    damage, words = UNRUNNABLE[case]
    damage(source)
    converted = run("convert", source, tmp_path / "out")
    assert converted.exit_code == 0
    (note,) = converted.stderr.splitlines()
    assert note.startswith("int8conv: note: the runtime cannot run this model")
    for folder in (source, tmp_path / "out"):
        check_refused(run("generate", folder, *COMMANDS["generate"]), *words)
        (note,) = succeed("footprint", folder).stderr.splitlines()
        assert note.startswith("int8conv: note: the runtime cannot run this model")
        assert note.endswith("the sizes of KV cache and activations are unknown")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (remove("tokenizer.json"), "/converted: no tokenizer in this folder: expected tokenizer.json"),
        (replace_file("tokenizer.json", b"{}"), "/converted: tokenizer files are unusable"),
        (replace_file("tokenizer.json", b"\xff"), "/converted: tokenizer files are unusable"),
    ],
    ids=["missing", "not a tokenizer", "not JSON"],
)  # fmt: skip
def test_generate_without_a_usable_tokenizer(converted: Path, damage: Damage, words: str) -> None:
    damage(converted)
    check_refused(run("generate", converted, "-p", "Once"), words)


def test_generate_from_a_source_that_is_quantized(source: Path) -> None:
    after_config(quantization_config={"quant_method": "awq"})(source)
    check_refused(run("generate", source, "-p", "Once"), "config.json", "'awq'")


def test_generate_with_a_tensor_of_another_shape(converted: Path) -> None:
    """The manifest agrees, the config does not."""
    edit_json(converted / "config.json", lambda config: config.update(intermediate_size=700))
    words = ("gate_proj.weight", "expected [700, 256], found [704, 256]")
    check_refused(run("generate", converted, "-p", "Once"), SHARD, *words)


def test_context_too_long(example_int8: Path) -> None:
    check_refused(run("footprint", example_int8, "--context", 5000), "1 to 1024 positions", 5000)
    result = run("generate", example_int8, "-p", "Once", "-n", 5000)
    check_refused(result, "do not fit the context", "1 to 1024 positions")


def test_every_word_of_an_error_is_on_one_line(tmp_path: Path) -> None:
    """Names with line breaks, from the system or from a file, do not break the line."""
    check_refused(run("inspect", tmp_path / "a\nb"), "no such folder")
    source = write_checkpoint(tmp_path / "source", shards=2)
    edit_json(source / INDEX, lambda value: value["weight_map"].update({"a\nb\r": 5}))
    check_refused(run("convert", source, tmp_path / "out"), "tensor 'a b '")
    assert json.loads((source / INDEX).read_text())["weight_map"]["a\nb\r"] == 5
