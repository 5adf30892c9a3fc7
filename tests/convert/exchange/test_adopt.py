"""``adopt``: what transformers saves of a converted folder becomes one again, or is refused in a line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import int8conv
from int8conv.convert.exchange.adopt import adopt
from int8conv.errors import (
    CompanionError,
    Int8convError,
    JsonFileError,
    MissingTensorError,
    NotConvertedError,
    OutputExistsError,
    OutputOverlapError,
    UnknownVersionError,
)
from int8conv.formats.int8.folder import open_converted
from int8conv.formats.int8.verify import verify

from ...checkpoints import OPT, random_tensors, write_checkpoint
from ...formats.damage import edit_json

Q, K, V = (f"model.decoder.layers.0.self_attn.{role}_proj" for role in "qkv")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A converted folder with biases, and what a model of it in float32 is saved as; not to be changed."""
    folder = tmp_path_factory.mktemp("adopt")
    write_checkpoint(folder / "source", OPT, random_tensors(OPT))
    int8conv.convert_checkpoint(folder / "source", folder / "int8")
    write_saved(folder / "int8", folder / "saved")
    return folder / "int8", folder / "saved"


def tensors_of(folder: Path) -> dict[str, Tensor]:
    found = {}
    for shard in sorted(folder.glob("*.safetensors")):
        found |= {n: t for n, t in load_file(shard).items() if "padding" not in n}
    return found


def write_saved(folder: Path, saved: Path) -> None:
    """One file in the library's order; what is no part of the format in float32; JSON in another form."""
    saved.mkdir()
    tensors = tensors_of(folder)
    for name, tensor in tensors.items():
        if tensor.dtype == torch.float16 and not name.endswith("outlier_weight"):
            tensors[name] = tensor.float()
    save_file(tensors, saved / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True))


@pytest.fixture
def saved(pair: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(pair[1], tmp_path / "saved"))


def test_what_was_saved_is_a_converted_folder_again(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    before, saved = pair
    with pytest.raises(NotConvertedError, match=r"no manifest.*'int8conv adopt'"):
        int8conv.load(saved)
    report = adopt(saved, tmp_path / "out", max_shard_bytes=60_000)
    verify(tmp_path / "out")
    old, new = open_converted(before), open_converted(tmp_path / "out")
    assert sorted(new.manifest.inputs, key=str) == sorted(old.manifest.inputs, key=str)
    assert len(new.checkpoint.headers) > 1
    assert (report.quantized, report.rounded) == (len(old.linears), 0)
    assert report.outlier_columns == sum(group.outliers for group in old.manifest.inputs) > 0
    assert new.config == old.config | {"quantization_config": new.config["quantization_config"]}
    was, now = tensors_of(before), tensors_of(tmp_path / "out")
    assert was.keys() == now.keys()
    for name, tensor in was.items():
        matrix = tensor.ndim > 1 or tensor.dtype != torch.float16
        assert now[name].dtype == (tensor.dtype if matrix else torch.float32), name
        assert torch.equal(now[name].to(tensor.dtype), tensor), name
    ids = torch.arange(20)[None]
    for mode in ("w8a8", "w8a16"):
        found, expected = (
            int8conv.load(f, mode=mode).logits(ids) for f in (tmp_path / "out", before)
        )  # type: ignore[arg-type]
        assert torch.equal(found, expected)


def test_the_bytes_are_those_of_a_second_time(pair: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        adopt(pair[1], tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def change_section(saved: Path, **fields: object) -> None:
    edit_json(saved / "config.json", lambda config: config["quantization_config"].update(fields))


def drop(saved: Path, name: str) -> None:
    tensors = load_file(saved / "model.safetensors")
    del tensors[name]
    save_file(tensors, saved / "model.safetensors")


def rename(saved: Path, old: str, new: str) -> None:
    tensors = load_file(saved / "model.safetensors")
    tensors[new] = tensors.pop(old)
    save_file(tensors, saved / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "error", "text"),
    [
        (lambda f: edit_json(f / "config.json", lambda c: c.pop("quantization_config")), NotConvertedError, "quant_method"),
        (lambda f: change_section(f, quant_method="fp8"), NotConvertedError, "found fp8"),
        (lambda f: change_section(f, version=2), UnknownVersionError, "version"),
        (lambda f: edit_json(f / "config.json", lambda c: c["quantization_config"].pop("groups")), JsonFileError, "no 'groups'"),
        (lambda f: change_section(f, groups=[{}]), JsonFileError, "'linears'"),
        (lambda f: edit_json(f / "config.json", lambda c: c["quantization_config"]["groups"].pop(0)), CompanionError, "none of the groups"),
        (lambda f: drop(f, f"{Q}.weight"), MissingTensorError, f"{Q}.weight"),
        (lambda f: drop(f, f"{K}.weight_scale"), MissingTensorError, f"{K}.weight_scale"),
        (lambda f: drop(f, f"{V}.outlier_index"), MissingTensorError, f"{V}.outlier_index"),
        (lambda f: rename(f, f"{V}.bias", f"{V}.other"), CompanionError, "bias"),
    ],
)  # fmt: skip
def test_what_does_not_hold_together(
    saved: Path, tmp_path: Path, damage: object, error: type[Int8convError], text: str
) -> None:
    damage(saved)  # type: ignore[operator]
    with pytest.raises(error, match=text) as caught:
        adopt(saved, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"saved"}


def test_outputs_that_are_not_touched(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputOverlapError):
        adopt(saved, saved)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    for force in (False, True):
        with pytest.raises(OutputExistsError):
            adopt(saved, tmp_path / "out", force=force)
    adopt(saved, tmp_path / "new")
    adopt(saved, tmp_path / "new", force=True)
