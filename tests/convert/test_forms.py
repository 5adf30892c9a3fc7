"""The same model in every form that people have it in gives the same folder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor, nn

import int8conv
from int8conv.convert.converter import convert_checkpoint
from int8conv.errors import DuplicateTensorError, MissingShardError
from int8conv.formats.int8.folder import open_converted

from ..checkpoints import LLAMA, random_tensors, write_checkpoint
from ..formats.damage import rejected


def shards_without_an_index(folder: Path, tensors: dict[str, Tensor]) -> Path:
    write_checkpoint(folder, LLAMA, tensors, shards=3)
    (folder / "model.safetensors.index.json").unlink()
    return folder


def of_another_name(folder: Path, tensors: dict[str, Tensor]) -> Path:
    write_checkpoint(folder, LLAMA, tensors)
    (folder / "model.safetensors").rename(folder / "merged.fp16.safetensors")
    return folder


def named_itself(folder: Path, tensors: dict[str, Tensor]) -> Path:
    write_checkpoint(folder, LLAMA, random_tensors(LLAMA, seed=5))
    save_file(tensors, folder / "step-100.safetensors")
    return folder / "step-100.safetensors"


def index_named_itself(folder: Path, tensors: dict[str, Tensor]) -> Path:
    write_checkpoint(folder, LLAMA, tensors, shards=2)
    save_file(random_tensors(LLAMA, seed=5), folder / "model.safetensors")
    return folder / "model.safetensors.index.json"


def pth(folder: Path, tensors: dict[str, Tensor]) -> Path:
    write_config(folder)
    torch.save(tensors, folder / "consolidated.00.pth")
    return folder


def numbered_pickles(folder: Path, tensors: dict[str, Tensor]) -> Path:
    write_config(folder)
    for number in range(2):
        part = dict(list(tensors.items())[number::2])
        torch.save(part, folder / f"pytorch_model-{number + 1:05}-of-00002.bin")
    return folder


def pickle_named_itself(folder: Path, tensors: dict[str, Tensor]) -> Path:
    write_checkpoint(folder, LLAMA, random_tensors(LLAMA, seed=5))
    torch.save(tensors, folder / "best.pt")
    return folder / "best.pt"


def a_cache_of_links(folder: Path, tensors: dict[str, Tensor]) -> Path:
    """As the hub's library has it: names are links to files of other names."""
    blobs = write_checkpoint(folder / "blobs", LLAMA, tensors)
    snapshot = folder / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path.rename(path.with_name(f"{hash(path.name):x}")))
    return snapshot / "model.safetensors"


def write_config(folder: Path, config: dict[str, Any] = LLAMA) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))


def weights(folder: Path) -> dict[str, bytes]:
    """All but the manifest, which names the source."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "int8conv.json"}


@pytest.mark.parametrize(
    "form",
    [
        shards_without_an_index, of_another_name, named_itself, index_named_itself, pth, numbered_pickles,
        pickle_named_itself, a_cache_of_links,
    ],
)  # fmt: skip
@pytest.mark.parametrize("outliers", ["calibrated", "none"])
def test_every_form_gives_the_same(
    tmp_path: Path, form: Callable[[Path, dict[str, Tensor]], Path], outliers: Any
) -> None:
    tensors = random_tensors(LLAMA)
    source = write_checkpoint(tmp_path / "source", LLAMA, tensors)
    convert_checkpoint(source, tmp_path / "expected", outliers=outliers)
    given = form(tmp_path / "given", tensors)
    convert_checkpoint(given, tmp_path / "found", outliers=outliers)
    assert weights(tmp_path / "found") == weights(tmp_path / "expected")
    ids = torch.arange(20)[None]
    assert torch.equal(int8conv.load(given).logits(ids), int8conv.load(source).logits(ids))


def test_inspect_against_a_file(tmp_path: Path) -> None:
    given = named_itself(tmp_path / "given", random_tensors(LLAMA))
    convert_checkpoint(given, tmp_path / "int8", outliers="none")
    command = [sys.executable, "-m", "int8conv", "inspect", tmp_path / "int8", "--against"]
    shown = subprocess.run([*command, given], capture_output=True, text=True, check=True)
    assert "other tensors and the config match the source bit for bit" in shown.stdout
    other = subprocess.run([*command, given.parent], capture_output=True, text=True, check=False)
    assert (other.returncode, other.stderr.count("\n")) == (1, 1)


def test_shards_of_tensor_parallelism_are_refused(tmp_path: Path) -> None:
    write_config(tmp_path / "source")
    for number in (1, 2):
        torch.save(random_tensors(LLAMA), tmp_path / "source" / f"x-{number}-of-2.pth")
    with rejected(DuplicateTensorError, "x-2-of-2.pth", "x-1-of-2.pth", "merge tensor-parallel"):
        convert_checkpoint(tmp_path / "source", tmp_path / "int8", outliers="none")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    source = shards_without_an_index(tmp_path / "source", random_tensors(LLAMA))
    (source / "model-00002-of-00003.safetensors").unlink()
    with rejected(MissingShardError, "model-00002-of-00003.safetensors"):
        convert_checkpoint(source, tmp_path / "int8", outliers="none")
    assert not (tmp_path / "int8").exists()


TIED = LLAMA | {"tie_word_embeddings": True}


class Tied(nn.Module):
    """Embedding and head share their weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding.from_pretrained(weight)
        self.lm_head = nn.Linear(*weight.shape[::-1], bias=False)
        self.lm_head.weight = self.model.embed_tokens.weight


def saved_by_safetensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    """``save_model`` keeps the first name of those that share memory."""
    write_config(folder, TIED)
    tied = Tied(tensors["model.embed_tokens.weight"])
    save_model(tied, str(folder / "model.safetensors"))
    saved = load_file(folder / "model.safetensors")
    assert set(saved) == {"lm_head.weight"}
    rest = {name: t for name, t in tensors.items() if name != "model.embed_tokens.weight"}
    save_file(saved | rest, folder / "model.safetensors")


def saved_by_torch(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Both names, one storage."""
    write_config(folder, TIED)
    shared = {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    torch.save(tensors | shared, folder / "pytorch_model.bin")


def saved_twice(folder: Path, tensors: dict[str, Tensor]) -> None:
    copy = tensors["model.embed_tokens.weight"].clone()
    write_checkpoint(folder, TIED, tensors | {"lm_head.weight": copy})


@pytest.mark.parametrize("save", [saved_by_safetensors, saved_by_torch, saved_twice])
def test_tied_weights(tmp_path: Path, save: Callable[[Path, dict[str, Tensor]], None]) -> None:
    """Stored once, whichever name the source has them by."""
    tensors = random_tensors(TIED)
    source = write_checkpoint(tmp_path / "source", TIED, tensors)
    save(tmp_path / "given", tensors)
    convert_checkpoint(source, tmp_path / "expected")
    convert_checkpoint(tmp_path / "given", tmp_path / "found")
    expected, found = (open_converted(tmp_path / name) for name in ("expected", "found"))
    assert found.checkpoint.nbytes == expected.checkpoint.nbytes
    ids = torch.arange(20)[None]
    logits = int8conv.load(tmp_path / "expected").logits(ids)
    assert torch.equal(int8conv.load(tmp_path / "found").logits(ids), logits)
    assert torch.equal(
        int8conv.load(tmp_path / "given").logits(ids), int8conv.load(source).logits(ids)
    )


def test_tensors_that_share_memory_become_two(tmp_path: Path) -> None:
    """Two linears of one storage, as ``torch.save`` writes them."""
    tensors = random_tensors(LLAMA)
    shared = tensors["model.layers.0.mlp.up_proj.weight"]
    write_config(tmp_path / "source")
    torch.save(
        tensors | {"model.layers.1.mlp.up_proj.weight": shared},
        tmp_path / "source" / "pytorch_model.bin",
    )
    convert_checkpoint(tmp_path / "source", tmp_path / "found", outliers="none")
    copy = {"model.layers.1.mlp.up_proj.weight": shared.clone()}
    convert_checkpoint(
        write_checkpoint(tmp_path / "copied", LLAMA, tensors | copy), tmp_path / "expected", outliers="none"
    )  # fmt: skip
    assert weights(tmp_path / "found") == weights(tmp_path / "expected")
