"""Checkpoints that ``torch.save`` wrote: the same conversion as from safetensors, and nothing in them is run."""

from __future__ import annotations

import json
import os
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import int8conv
from int8conv.errors import (
    MissingShardError,
    NonFiniteWeightError,
    NotFoundError,
    PickleFileError,
    TruncatedFileError,
    UnsafePathError,
)
from int8conv.formats.safetensors.storage import LocalFile
from int8conv.formats.source.checkpoint import open_checkpoint
from int8conv.formats.source.pickle_machine import run_pickle
from int8conv.formats.source.pickled import _KNOWN, _storage, read_pickle
from int8conv.runtime.weights.mapping import read_tensor

from ...checkpoints import LLAMA, OPT, random_tensors, write_checkpoint
from ..damage import rejected
from .pickles import Call, Storage, dumps, tensor, write_archive

FILE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"


def write_pickle(folder: Path, tensors: Any, config: dict[str, Any] = LLAMA) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(tensors, folder / FILE)
    return folder


def shard_bytes(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*.safetensors"))]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("config", [LLAMA, OPT], ids=["llama", "opt"])
def test_the_same_bytes_as_from_safetensors(
    tmp_path: Path, dtype: torch.dtype, config: dict[str, Any]
) -> None:
    tensors = random_tensors(config, dtype)
    write_pickle(tmp_path / "pickle", tensors, config)
    write_checkpoint(tmp_path / "safe", config, tensors)
    for name in ("pickle", "safe"):
        int8conv.convert_checkpoint(tmp_path / name, tmp_path / f"{name}-int8", outliers="none")
    assert shard_bytes(tmp_path / "pickle-int8") == shard_bytes(tmp_path / "safe-int8")
    assert not list((tmp_path / "pickle-int8").glob("*.bin*"))


def test_shards_with_an_index_parameters_and_ties(tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = {
        name: torch.nn.Parameter(tensor) for name, tensor in random_tensors(LLAMA).items()
    }
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    folder = tmp_path / "pickle"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    weight_map = {}
    for number in range(3):
        part = OrderedDict(list(tensors.items())[number::3])
        torch.save(part, folder / f"part-{number}.bin")
        weight_map |= dict.fromkeys(part, f"part-{number}.bin")
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = open_checkpoint(folder)
    assert set(checkpoint.tensors) == set(tensors)
    for name, stored in checkpoint.tensors.items():
        assert torch.equal(read_tensor(stored), tensors[name])
    int8conv.convert_checkpoint(folder, tmp_path / "int8", outliers="none")
    (folder / "part-1.bin").unlink()
    with rejected(MissingShardError, "part-1.bin", INDEX):
        open_checkpoint(folder)


def test_slices_and_empty_tensors_are_found_where_they_lie(tmp_path: Path) -> None:
    whole = torch.arange(24, dtype=torch.float32).reshape(6, 4)
    tensors = {"whole": whole, "slice": whole[2:5], "empty": torch.empty(0, 3)}
    torch.save(tensors, tmp_path / FILE)
    header = read_pickle(LocalFile(tmp_path / FILE))
    data = (tmp_path / FILE).read_bytes()
    for name, info in header.tensors.items():
        found = torch.frombuffer(bytearray(data[info.begin : info.end] or b"\0"), dtype=torch.uint8)
        expected = tensors[name].contiguous().view(-1).view(torch.uint8)
        assert torch.equal(found[: len(expected)], expected)
        assert info.shape == tensors[name].shape


def test_an_old_pickle_of_transformers_runs(example: Path, tmp_path: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(example, dtype=torch.float32).eval()
    write_pickle(
        tmp_path / "old", reference.state_dict(), json.loads((example / "config.json").read_text())
    )
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        expected = reference(ids).logits
    assert (int8conv.load(tmp_path / "old").logits(ids) - expected).abs().max() < 1e-4


def test_safetensors_are_preferred(source: Path) -> None:
    (source / FILE).write_bytes(b"never opened")
    assert list(open_checkpoint(source).headers) == ["model.safetensors"]


class Attack:
    """Unpickled by a careless reader, it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def test_a_malicious_pickle_does_not_run(tmp_path: Path) -> None:
    target = tmp_path / "owned"
    folder = write_pickle(tmp_path / "evil", random_tensors(LLAMA) | {"x": Attack(target)})
    with rejected(PickleFileError, str(folder / FILE), "cannot be read safely"):
        int8conv.convert_checkpoint(folder, tmp_path / "out")
    assert not target.exists()
    assert not (tmp_path / "out").exists()


def test_a_malicious_shard_of_the_index_does_not_run(tmp_path: Path) -> None:
    """A safetensors index that names a pickle: read as safetensors, and refused."""
    folder = write_pickle(tmp_path / "evil", {"x": Attack(tmp_path / "owned")})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": FILE}}))
    with pytest.raises(int8conv.Int8convError, match=FILE):
        open_checkpoint(folder)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([torch.zeros(2)], ["expected tensors by name, found list"]),
        ({"a": 3}, ["'a'", "int"]),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, ["'a'", "complex64"]),
        ({"a": torch.zeros(2, 3).t()}, ["'a'", "row-major order"]),
    ],
    ids=["a list", "a number", "complex", "transposed"],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, value: Any, words: list[str]) -> None:
    torch.save(value, tmp_path / FILE)
    with rejected(PickleFileError, str(tmp_path / FILE), *words):
        read_pickle(LocalFile(tmp_path / FILE))


def test_files_of_another_kind_are_named(tmp_path: Path) -> None:
    path = tmp_path / FILE
    torch.save(random_tensors(LLAMA), path)
    whole = path.read_bytes()
    for data in (b"", b"junk" * 100, whole[: len(whole) // 2], whole[:-30]):
        path.write_bytes(data)
        with rejected(PickleFileError, str(path)):
            read_pickle(LocalFile(path))
    torch.save(random_tensors(LLAMA), path, _use_new_zipfile_serialization=False)
    with rejected(PickleFileError, str(path), "convert it to safetensors"):
        read_pickle(LocalFile(path))
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02N.")
    with rejected(PickleFileError, str(path)):
        read_pickle(LocalFile(path))


def test_an_index_says_which_files_there_are(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA)
    folder, shard = write_pickle(tmp_path / "pickle", tensors), "pytorch_model-1-of-1.bin"
    (folder / FILE).rename(folder / shard)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"absent": shard}}))
    opened = open_checkpoint(folder)
    assert opened.tensors.keys() == tensors.keys()
    assert any("absent" in note for note in opened.notes)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": f"../{shard}"}}))
    with rejected(UnsafePathError, INDEX):
        open_checkpoint(folder)


def test_nan_is_named_as_in_safetensors(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA)
    tensors["model.layers.0.mlp.up_proj.weight"][7, 3] = float("nan")
    folder = write_pickle(tmp_path / "pickle", tensors)
    with rejected(NonFiniteWeightError, FILE, "'model.layers.0.mlp.up_proj.weight'", "row 7"):
        int8conv.convert_checkpoint(folder, tmp_path / "out", outliers="none")


def test_mutated_pickles_give_our_errors_only(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    path = tmp_path / FILE
    torch.save({"a": torch.zeros(4, 4), "b": torch.ones(3).half()}, path)
    whole = path.read_bytes()
    for _ in range(300):
        data = bytearray(whole)
        for position in torch.randint(len(data), (3,), generator=generator).tolist():
            data[position] = int(torch.randint(256, (1,), generator=generator))
        path.write_bytes(data)
        try:
            header = read_pickle(LocalFile(path))
        except (PickleFileError, TruncatedFileError):
            continue
        assert all(0 <= info.begin <= info.end <= len(data) for info in header.tensors.values())


def refused(tmp_path: Path, value: object, *words: str, records: Any = None) -> None:
    path = write_archive(tmp_path / FILE, dumps(value), records)
    with rejected(PickleFileError, str(path), *words):
        read_pickle(LocalFile(path))


def test_dtypes_and_attributes_that_torch_saves_otherwise(tmp_path: Path) -> None:
    with_attribute = torch.ones(3)
    with_attribute.origin = "mine"  # type: ignore[attr-defined]
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.rank = 3  # type: ignore[attr-defined]
    tensors: OrderedDict[str, Tensor] = OrderedDict(
        f8=torch.zeros(4, 4, dtype=torch.float8_e4m3fn), u16=torch.ones(5, dtype=torch.uint16),
        a=with_attribute, p=parameter, number=torch.tensor(3),
    )  # fmt: skip
    tensors._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    for protocol in (2, 4):
        torch.save(tensors, tmp_path / FILE, pickle_protocol=protocol)
        header = read_pickle(LocalFile(tmp_path / FILE))
        data = (tmp_path / FILE).read_bytes()
        assert {n: t.dtype for n, t in header.tensors.items()} == {
            "f8": "F8_E4M3", "u16": "U16", "a": "F32", "p": "F32", "number": "I64",
        }  # fmt: skip
        for name, info in header.tensors.items():
            expected = tensors[name].detach().reshape(-1).view(torch.uint8)
            assert data[info.begin : info.end] == expected.numpy().tobytes()


def test_offsets_sizes_and_strides_that_lead_elsewhere(tmp_path: Path) -> None:
    good = write_archive(
        tmp_path / FILE, dumps({"a": tensor(), "b": tensor(shape=(2, 1), strides=(1, 9))})
    )
    assert [t.nbytes for t in read_pickle(LocalFile(good)).tensors.values()] == [8, 16]
    past, malformed = "extends past the end of its storage", "a malformed tensor"
    for changes, words in (
        ({"offset": 1}, past), ({"shape": (5,)}, past), ({"offset": 2**62}, past), ({"shape": (2**62,)}, past),
        ({"storage": Storage(count=5)}, past), ({"storage": Storage(count=2**62)}, past),
        ({"shape": (2**40, 2**40), "strides": (2**40, 1)}, "row-major"), ({"shape": (2, 4), "strides": (0, 1)}, "row-major"),
        ({"shape": (2**62,), "strides": (0,)}, "row-major"), ({"shape": (2,), "strides": (2,)}, "row-major"),
        ({"offset": -1}, malformed), ({"shape": (-4,)}, malformed), ({"strides": (-1,)}, malformed),
        ({"offset": 2**64}, malformed), ({"shape": (2**64,)}, malformed), ({"shape": [4]}, malformed),
        ({"shape": (4.0,)}, malformed), ({"shape": ("4",)}, malformed), ({"offset": None}, malformed),
        ({"shape": (4, 1)}, malformed), ({"shape": (1,) * 65, "strides": (1,) * 65}, malformed),
        ({"storage": "0"}, malformed), ({"storage": Storage(kind=torch.UntypedStorage)}, malformed),
    ):  # fmt: skip
        refused(tmp_path, {"a": tensor(**changes)}, words)
    refused(tmp_path, {"a": tensor()}, "no record 'data/0'", records={})
    refused(tmp_path, {"a": tensor()}, past, "16 bytes in record 'data/0', found 15", records={"data/0": bytes(15)})  # fmt: skip
    short = Call(torch._utils._rebuild_tensor_v2, Storage(), 0)
    refused(tmp_path, {"a": short}, malformed)
    refused(
        tmp_path,
        {"a": Call(torch._utils._rebuild_parameter, 3, False, None)},
        "malformed parameter",
    )


def test_persistent_ids_of_another_shape(tmp_path: Path) -> None:
    for wrong in (
        Storage(key=3), Storage(count=-1), Storage(count="4"), Storage(kind="FloatStorage"), Storage(kind=OrderedDict),
    ):  # fmt: skip
        refused(tmp_path, {"a": tensor(wrong)}, "malformed persistent id")
    for other in (3, (), ("module", "x"), [torch.FloatStorage], ("storage", torch.FloatStorage)):
        wrong = Storage()
        wrong.id = other
        refused(tmp_path, {"a": tensor(wrong)}, "malformed persistent id")
    refused(tmp_path, {"a": tensor(Storage(key="../data.pkl"))}, "no record 'data/../data.pkl'")


def test_tensors_that_share_bytes_beyond_reason(tmp_path: Path) -> None:
    """A file of 3 MB would become one of many gigabytes."""
    big = {"data/0": bytes(1 << 16)}
    part = Storage(count=1 << 14)
    four = {str(i): tensor(part, 0, (1 << 14,)) for i in range(4)}
    path = write_archive(tmp_path / FILE, dumps(four), big)
    assert len({t.begin for t in read_pickle(LocalFile(path)).tensors.values()}) == 1
    many = {str(i): tensor(part, 0, (1 << 14,)) for i in range(100)}
    refused(tmp_path, many, "share their bytes", f"found {100 << 16}", records=big)


def test_objects_that_are_no_tensors_in_a_file(tmp_path: Path) -> None:
    sparse = torch.eye(3).to_sparse()
    for value, words in (
        (sparse, "it asks for torch._utils._rebuild_sparse_tensor"), (bytearray(9), "it asks for"), (b"abc", "it asks for"),
        (torch.device("cpu"), "torch.device"), (Call(bytearray, 1 << 31), "builtin"), ({1, 2}, "set"),
        (Call(torch.Tensor, 1 << 40), "it calls a class"), (Call(OrderedDict, 3), "keys that are not text"),
        (Call(OrderedDict, [[(1, 2), 3]]), "keys that are not text"),
    ):  # fmt: skip
        torch.save({"a": value}, tmp_path / FILE)
        with rejected(PickleFileError, str(tmp_path / FILE), "cannot be read safely", words):
            read_pickle(LocalFile(tmp_path / FILE))
    old = Call(OrderedDict, [["a", torch.ones(2)]])  # as Python 2 pickles it
    torch.save(old, tmp_path / FILE)
    assert list(read_pickle(LocalFile(tmp_path / FILE)).tensors) == ["a"]
    pairs = [
        ["a", tensor()]
    ]  # of a hundred thousand, a few bytes more for each call would make as many again
    twice = dumps([Call(OrderedDict, pairs), Call(OrderedDict, pairs)])
    first, second = run_pickle(twice, _KNOWN, _storage)  # type: ignore[misc]
    assert (list(first), list(second)) == (["a"], [])


def test_the_other_byte_order(tmp_path: Path) -> None:
    records = {"data/0": bytes(16), "byteorder": b"big"}
    refused(
        tmp_path, {"a": tensor()}, "not in little-endian byte order", "found big", records=records
    )


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FILE)
    for path in (tmp_path / FILE, Path("/dev/zero")):
        with rejected(NotFoundError, str(path), "not a regular file"):
            read_pickle(LocalFile(path))
