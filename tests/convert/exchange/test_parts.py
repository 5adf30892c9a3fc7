"""What is written of an export: files of other tools' form, in any number of shards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

import int8conv
from int8conv.convert.exchange.parts import Part, copied, write_parts
from int8conv.formats.int8.folder import open_converted
from int8conv.formats.int8.layout import TensorSpec
from int8conv.progress import silent

from ...checkpoints import write_checkpoint


def test_parts_become_aligned_shards_with_an_index(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source")
    (source / "LICENSE").write_text("free")
    int8conv.convert_checkpoint(source, tmp_path / "int8", outliers="none")
    converted = open_converted(tmp_path / "int8")
    norm = converted.checkpoint.tensor("model.norm.weight")
    twos = np.array([1, 2], np.float32), np.array([3], np.int8)
    parts = [
        copied(norm),
        copied(norm, "again", (1, 64)),
        Part(
            (TensorSpec("b", "I8", (3,)), TensorSpec("a", "F32", (2,))),
            lambda: iter([("b", 2, twos[1]), ("a", 0, twos[0])]),
        ),
    ]
    seen: list[tuple[int, int]] = []

    def record(stage: str, done: int, total: int) -> None:
        seen.append((done, total))

    for most in (10, 1 << 20):
        folder = tmp_path / str(most)
        folder.mkdir()
        config = {"model_type": "llama", "é": 1}
        total = write_parts(folder, converted, parts, config, most, record)
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        shards = sorted(folder.glob("*.safetensors"))
        assert total == sum(path.stat().st_size for path in shards)
        assert len(shards) == (4 if most == 10 else 1)
        found: dict[str, torch.Tensor] = {}
        for path in shards:
            tensors = load_file(path)
            assert all(index["weight_map"][name] == path.name for name in tensors)
            assert json.loads(path.read_bytes()[8:].split(b"}")[0] + b"}}")["__metadata__"] == {"format": "pt"}  # fmt: skip
            found |= tensors
        assert list(index["weight_map"]) == ["a", "model.norm.weight", "again", "b"] or most == 10
        assert index["metadata"]["total_size"] == 267
        assert seen[-1] == (265, 267)
        assert found["a"].tolist() == [1, 2]
        assert found["b"].tolist() == [0, 0, 3]
        assert torch.equal(found["again"][0], found["model.norm.weight"])
        assert (folder / "LICENSE").read_text() == "free"
        assert json.loads((folder / "config.json").read_text()) == config


def test_a_tensor_without_elements_is_written(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "source")
    int8conv.convert_checkpoint(tmp_path / "source", tmp_path / "int8", outliers="none")
    (tmp_path / "out").mkdir()
    part = Part((TensorSpec("nothing", "F16", (0, 4)),), lambda: iter(()))
    write_parts(tmp_path / "out", open_converted(tmp_path / "int8"), [part], {}, 100, silent)
    found = load_file(tmp_path / "out" / "model-00001-of-00001.safetensors")
    assert found["nothing"].shape == (0, 4)
