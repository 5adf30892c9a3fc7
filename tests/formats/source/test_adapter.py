"""Adapters: refused where they stand alone, noted beside a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from int8conv.errors import AdapterError, NotFoundError
from int8conv.formats.source.checkpoint import open_checkpoint

from ..damage import rejected


def write_adapter(folder: Path, name: str = "adapter_model.safetensors") -> None:
    path = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{path}.lora_A.weight": torch.ones(8, 64), f"{path}.lora_B.weight": torch.ones(64, 8)}  # fmt: skip
    save_file(tensors, folder / name)
    config = {"peft_type": "LORA", "base_model_name_or_path": "some/base-7B", "r": 8}
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("config", [True, False])
def test_an_adapter_alone_is_refused_and_its_base_named(source: Path, *, config: bool) -> None:
    (source / "model.safetensors").unlink()
    if not config:  # as peft writes it
        (source / "config.json").unlink()
    write_adapter(source)
    with rejected(AdapterError, str(source), "some/base-7B", "merge_and_unload"):
        open_checkpoint(source)


@pytest.mark.parametrize("base", [None, 5, "/home/me/model", "", "a/b\x1b[31m"])
def test_a_base_that_is_no_id_is_not_named(source: Path, base: object) -> None:
    (source / "model.safetensors").unlink()
    (source / "adapter_model.bin").write_bytes(b"")
    (source / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    with rejected(AdapterError, "an adapter, not a model (merge"):
        open_checkpoint(source)


def test_an_adapter_config_without_weights(source: Path) -> None:
    (source / "model.safetensors").unlink()
    with rejected(NotFoundError, "no checkpoint"):
        open_checkpoint(source)
    (source / "adapter_config.json").write_text("[")
    with rejected(AdapterError, str(source)):
        open_checkpoint(source)


def test_an_adapter_beside_the_weights_is_noted(source: Path) -> None:
    before = open_checkpoint(source)
    write_adapter(source)
    after = open_checkpoint(source)
    assert after.tensors == before.tensors
    (note,) = after.notes
    assert "adapter_model.safetensors" in note
    assert "merge" in note
