"""What stands beside the shards of a converted folder, byte by byte, from a plan and results made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import xxhash

from int8conv import __version__
from int8conv.convert import metadata_files
from int8conv.convert.metadata_files import make_manifest, write_metadata_files
from int8conv.convert.options import ConvertOptions
from int8conv.convert.plan import KeepTask, Plan
from int8conv.convert.stream import TaskResult
from int8conv.errors import FileChangedError, NotFoundError
from int8conv.formats.hub.download import Source
from int8conv.formats.int8.layout import TensorSpec, plan_layout
from int8conv.formats.int8.manifest import InputGroup, Manifest, read_manifest
from int8conv.formats.safetensors.storage import LocalFile
from int8conv.formats.safetensors.stored import StoredTensor
from int8conv.formats.source.checkpoint import Checkpoint

from ..formats.damage import rejected

CONFIG = {"model_type": "x", "quantization_config": None, "größe": 1}
OPTIONS = ConvertOptions(outliers="none", dtype="bfloat16", keep=("head",))
D = "d.outlier_weight"
INPUTS = (InputGroup(("a", "b"), 16, 0, 1.5), InputGroup(("d",), 32, 16, None))


def digest(data: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(data)


def task(name: str, *shape: int) -> KeepTask:
    stored = StoredTensor(name, "F32", shape, LocalFile(Path("in")), 0, 0)
    return KeepTask(name, stored, "BF16", "norm")


PLAN = Plan((task("b", 3, 5), task("a", 300)), (), INPUTS, {"c": "computed"})
RESULTS = [TaskResult("1" * 32, {"b": "2" * 32}, 4), TaskResult("3" * 32, {"a": "4" * 32}, 1)]


def test_the_manifest_of_a_plan_and_its_results() -> None:
    source = Source(Path("x"), "org/name", "c0ffee")
    made = make_manifest(source, OPTIONS, PLAN, RESULTS, {"tokens": 7})
    assert made == Manifest(
        generator=f"int8conv {__version__}",
        source={
            "id": "org/name", "revision": "c0ffee",
            "tensors": {
                "b": {"dtype": "F32", "shape": [3, 5], "xxh3_128": "1" * 32},
                "a": {"dtype": "F32", "shape": [300], "xxh3_128": "3" * 32},
            },
        },
        options=OPTIONS.to_json(), calibration={"tokens": 7}, inputs=INPUTS, rounded=5, skipped={"c": "computed"}, files={},
    )  # fmt: skip
    assert make_manifest(source, OPTIONS, PLAN, RESULTS, None).calibration is None
    with pytest.raises(ValueError, match="shorter"):
        make_manifest(source, OPTIONS, PLAN, RESULTS[:1], None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A source with files that go along."""
    folder = tmp_path / "source"
    (folder / "additional_chat_templates").mkdir(parents=True)
    (folder / "tokenizer.json").write_bytes(b"{}" * 1000)
    (folder / "LICENSE").write_bytes(b"")
    (folder / "additional_chat_templates" / "rag.jinja").write_bytes(b"{{ x }}")
    (folder / "notes.txt").write_bytes(b"not copied")
    return folder


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    (tmp_path / "staging").mkdir()
    return tmp_path / "staging"


def write(staging: Path, folder: Path) -> Any:
    """Two shards: ``b`` has 30 bytes, so padding stands before ``a``, and ``D`` has a shard of its own."""
    specs = TensorSpec("b", "BF16", (3, 5)), TensorSpec("a", "BF16", (300,)), TensorSpec(D, "BF16", (450,))  # fmt: skip
    layouts = plan_layout([((spec,),) for spec in specs], max_shard_bytes=1024)
    manifest = Manifest("us", {"tensors": {}}, {}, None, INPUTS)
    results = [*RESULTS, TaskResult("5" * 32, {D: "6" * 32})]
    checkpoint = Checkpoint(folder, CONFIG, {}, {}, None)
    write_metadata_files(staging, checkpoint, OPTIONS, layouts, manifest, results)
    return layouts


def test_every_file(staging: Path, folder: Path) -> None:
    one, two = write(staging, folder)
    config = json.loads((staging / "config.json").read_text())
    section = {
        "quant_method": "int8conv", "version": 1, "outliers": "none", "dtype": "bfloat16",
        "groups": [
            {"linears": ["a", "b"], "outliers": 0, "dtype": None, "threshold": 1.5},
            {"linears": ["d"], "outliers": 16, "dtype": "BF16", "threshold": None},
        ],
    }  # fmt: skip
    assert config == CONFIG | {"quantization_config": section}
    assert "größe" in (staging / "config.json").read_text()
    index = json.loads((staging / "model.safetensors.index.json").read_text())
    assert index == {
        "metadata": {"total_size": 256 + 600 + 900},
        "weight_map": {"b": one.name, "a": one.name, D: two.name},
    }
    for name in ("tokenizer.json", "LICENSE", "additional_chat_templates/rag.jinja"):
        assert (staging / name).read_bytes() == (folder / name).read_bytes()
    assert not (staging / "notes.txt").exists()
    for path in staging.glob("*.json"):
        assert path.name == "tokenizer.json" or path.read_bytes().endswith(b"}\n")


def test_the_manifest_has_every_file_but_itself(staging: Path, folder: Path) -> None:
    one, two = write(staging, folder)
    found = read_manifest(staging)
    assert (found.generator, found.inputs) == ("us", INPUTS)
    shards = {layout.name: layout for layout in (one, two)}
    written = {p.relative_to(staging).as_posix() for p in staging.rglob("*") if p.is_file()}
    assert set(found.files) == (written | set(shards)) - {"int8conv.json"}
    for name, record in found.files.items():
        if name in shards:
            header = shards[name].header
            assert (record.bytes, record.header_bytes) == (shards[name].nbytes, len(header))
            assert record.xxh3_128 == digest(header)
            continue
        data = (staging / name).read_bytes()
        assert (record.bytes, record.xxh3_128) == (len(data), digest(data))
        assert record.header_bytes is record.tensors is None
    assert found.files[one.name].tensors == {"b": "2" * 32, "a": "4" * 32}
    assert found.files[two.name].tensors == {D: "6" * 32}


def test_the_manifest_is_written_last(staging: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """A folder without it is none, whenever the work ends."""
    real, order = metadata_files.write_file, list[str]()

    def recorded(path: Path, data: bytes) -> None:
        assert (staging / "tokenizer.json").exists()
        order.append(path.name)
        real(path, data)

    monkeypatch.setattr(metadata_files, "write_file", recorded)
    write(staging, folder)
    assert order == ["config.json", "model.safetensors.index.json", "int8conv.json"]


def test_files_are_copied_block_by_block_over_what_is_there(
    staging: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an earlier attempt may have left it; a link in its place goes, and what it led to stays."""
    monkeypatch.setattr(metadata_files, "_BLOCK_BYTES", 7)
    (folder / "LICENSE").write_bytes(b"0123456789abcdefghij")
    (staging / "LICENSE").write_bytes(b"x" * 100)
    (folder / "NOTICE").write_bytes(b"")
    (staging / "NOTICE").write_bytes(b"x")
    (folder / "elsewhere").write_bytes(b"mine")
    (staging / "tokenizer.json").symlink_to(folder / "elsewhere")
    write(staging, folder)
    assert (staging / "LICENSE").read_bytes() == b"0123456789abcdefghij"
    assert (staging / "NOTICE").read_bytes() == b""
    assert (staging / "tokenizer.json").read_bytes() == b"{}" * 1000
    assert not (staging / "tokenizer.json").is_symlink()
    assert (folder / "elsewhere").read_bytes() == b"mine"
    record = read_manifest(staging).files["LICENSE"]
    assert (record.bytes, record.xxh3_128) == (20, digest(b"0123456789abcdefghij"))


def test_a_file_that_grows_while_it_is_copied_has_an_end(
    staging: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was small when it was listed. Part of it would look whole."""
    monkeypatch.setattr(metadata_files, "_BLOCK_BYTES", 10)
    monkeypatch.setattr(metadata_files, "MOST_BYTES", 2000)
    write(staging, folder)
    assert read_manifest(staging).files["tokenizer.json"].bytes == 2000
    monkeypatch.setattr(metadata_files, "MOST_BYTES", 1999)
    (staging / "int8conv.json").unlink()
    with rejected(FileChangedError, str(folder / "tokenizer.json")):
        write(staging, folder)
    assert (staging / "tokenizer.json").stat().st_size < 2000
    assert not (staging / "int8conv.json").exists()


def test_a_file_that_goes_away_while_it_is_copied(
    staging: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = metadata_files.find_metadata_files

    def removed(*args: Any) -> Any:
        found = real(*args)
        (folder / "tokenizer.json").unlink()
        return found

    monkeypatch.setattr(metadata_files, "find_metadata_files", removed)
    with rejected(NotFoundError, str(folder / "tokenizer.json"), "cannot be read"):
        write(staging, folder)
    assert not (staging / "int8conv.json").exists()
