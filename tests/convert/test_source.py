"""A source is opened and what becomes of its tensors decided: by family, or by names; with what the user left out, and notes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from int8conv.convert import source as source_module
from int8conv.convert.options import ConvertOptions
from int8conv.convert.outliers.selection import Group, Kept
from int8conv.convert.source import OpenedSource, open_source
from int8conv.errors import (
    AlreadyQuantizedError,
    ArgumentError,
    MissingTensorError,
    NotFoundError,
    UnsupportedModelError,
)
from int8conv.formats.hub.download import resolve

from ..checkpoints import LLAMA, edit_config, random_tensors, write_checkpoint
from ..formats.damage import rejected

TIED = LLAMA | {"tie_word_embeddings": True}


def opened(folder: Path, headers_only: bool = False, **options: Any) -> OpenedSource:
    return open_source(resolve(folder), ConvertOptions(**options), headers_only=headers_only)


def test_a_family_that_the_runtime_knows(source: Path) -> None:
    found = opened(source)
    assert found.architecture is not None
    assert found.architecture.config.num_layers == 2
    assert found.checkpoint.folder == source
    assert len([x for x in found.selection.items if isinstance(x, Group)]) == 8
    assert (found.selection.skipped, found.notes) == ({}, ())


def test_a_model_that_it_cannot_run_goes_by_names(source: Path) -> None:
    edit_config(source, model_type="unheard_of")
    found = opened(source)
    assert found.architecture is None
    paths = {x.path for item in found.selection.items if isinstance(item, Group) for x in item.linears}  # fmt: skip
    assert len(paths) == 14
    assert found.notes[0].startswith("the runtime cannot run this model (unknown model_type 'unheard_of'): linears are")  # fmt: skip
    edit_config(source, model_type="llama", rope_scaling={"rope_type": "ntk"})
    assert "rope_scaling.rope_type" in opened(source).notes[0]


def test_patterns_reach_the_selection_either_way(source: Path) -> None:
    for model_type in ("llama", "unheard_of"):
        edit_config(source, model_type=model_type)
        kept = [x.name for x in opened(source, keep=("up_proj",)).selection.items if isinstance(x, Kept)]  # fmt: skip
        assert "model.layers.1.mlp.up_proj.weight" in kept
        with rejected(ArgumentError, "keep matches no linear"):
            opened(source, keep=("nowhere",))


def test_what_is_not_included_or_is_excluded_takes_no_part(source: Path) -> None:
    """Both may match; nothing of it is looked at."""
    edit_config(source, model_type="unheard_of")
    found = opened(source, include=("layers.0", "embed"), exclude=("mlp", "^lm_head"))
    names = set(found.checkpoint.tensors)
    assert "model.layers.0.self_attn.q_proj.weight" in names
    assert found.selection.skipped == {
        name: "excluded" if "layers.0.mlp" in name else "not included"
        for name in random_tensors(LLAMA)
        if name not in names
    }
    assert len(names) + len(found.selection.skipped) == 21
    assert not any("mlp" in name or "layers.1" in name for name in names)
    assert set(opened(source, exclude=("mlp",)).selection.skipped.values()) == {"excluded"}


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_for_names_that_matches_nothing(source: Path, option: str) -> None:
    with rejected(
        ArgumentError, f"{option} matches no tensor", "'^q_proj'", "such as lm_head.weight"
    ):
        opened(source, **{option: (r"\.weight$", "^q_proj")})


def test_a_tensor_that_the_model_needs(source: Path, tmp_path: Path) -> None:
    """Left out by the user, or by whoever made the checkpoint."""
    name = "model.layers.1.mlp.up_proj.weight"
    with rejected(
        ArgumentError, "the model needs a tensor that is left out", name, "--include or --exclude"
    ):
        opened(source, exclude=("1.mlp.up",))
    tensors = random_tensors(LLAMA)
    del tensors[name]
    write_checkpoint(tmp_path / "broken", tensors=tensors)
    with rejected(MissingTensorError, name):
        opened(tmp_path / "broken", exclude=("lm_head",))


def test_notes_stand_in_the_order_in_which_they_come_up(source: Path) -> None:
    """Weights, files beside them, config, adapter, selection."""
    (source / "other.safetensors").write_bytes(b"")
    (source / "notes.txt").write_text("x")
    (source / "adapter_config.json").write_text("{}")
    edit_config(source, some_key=7)
    bias = {"model.layers.0.mlp.up_proj.bias": torch.zeros(160).half()}
    write_checkpoint(source, LLAMA | {"some_key": 7}, random_tensors(LLAMA) | bias)
    weights, files, config, adapter, unannounced = opened(source).notes
    assert "other.safetensors" in weights
    assert "notes.txt" in files
    assert "some_key" in config
    assert adapter.startswith("adapter_config.json: the adapter next to the weights")
    assert "up_proj.bias: not mentioned in the config" in unannounced


def test_an_adapter_beside_the_weights_is_said_once(source: Path) -> None:
    assert opened(source).notes == ()
    (source / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    alone = [note for note in opened(source).notes if "merge" in note]
    assert len(alone) == 1
    assert alone[0].startswith("adapter_config.json")
    save_file({"x.lora_A.weight": torch.ones(2, 2)}, source / "adapter_model.safetensors")
    with_weights = [note for note in opened(source).notes if "merge" in note]
    assert len(with_weights) == 1
    assert "adapter_model.safetensors" in with_weights[0]


def with_head(folder: Path, *, copy: bool) -> Path:
    tensors = random_tensors(TIED)
    head = tensors["model.embed_tokens.weight"].clone()
    if not copy:
        head[-1, -1] += 1
    return write_checkpoint(folder, TIED, tensors | {"lm_head.weight": head})


@pytest.mark.parametrize(
    ("copy", "headers_only", "dropped"),
    [(True, False, True), (False, False, False), (True, True, True), (False, True, True)],
)
def test_a_head_beside_a_tied_embedding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copy: bool, headers_only: bool, dropped: bool
) -> None:
    """Is compared with it where weights may be read."""
    read: list[str] = []
    real = source_module.have_same_values
    monkeypatch.setattr(source_module, "have_same_values", lambda a, b: read.append(b.name) or real(a, b))  # fmt: skip
    found = opened(with_head(tmp_path / "x", copy=copy), headers_only)
    assert found.architecture is not None
    assert found.architecture.untied == (not dropped)
    assert found.selection.skipped == ({"lm_head.weight": "tied to the token embedding"} if dropped else {})  # fmt: skip
    assert read == ([] if headers_only else ["lm_head.weight"])
    assert bool(found.notes) == (not dropped)


def test_what_is_no_source(source: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        opened(tmp_path)
    edit_config(source, quantization_config={"quant_method": "int8conv"})
    with pytest.raises(AlreadyQuantizedError, match="int8conv"):
        opened(source)
    nothing = {"norm.weight": torch.ones(4)}
    write_checkpoint(tmp_path / "none", {"model_type": "x"}, nothing)
    with pytest.raises(UnsupportedModelError):
        opened(tmp_path / "none")
